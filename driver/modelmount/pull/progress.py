"""One snapshot of a pull, behind the text of an RPC, the command line and metrics alike."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

RATE_WINDOW_SECONDS = 10.0
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a pull stands. Bytes and files are of the whole model, what was cached before included; `rate` is bytes per
    second over the last 10 s.
    """

    phase: str
    bytes_done: int
    bytes_total: int
    rate: float
    files_ready: int
    files_total: int

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left at the present rate; None while there is no rate."""
        return (self.bytes_total - self.bytes_done) / self.rate if self.rate > 0 else None


class Progress:
    """The live counters of one job. Thread-safe; readers take snapshots."""

    def __init__(self) -> None:
        """Starts in phase `resolving` with nothing known."""
        self._lock = threading.Lock()
        self._phase = "resolving"
        self._done = self._total = self._files_ready = self._files_total = 0
        self._fetched = 0
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def expect(self, bytes_total: int, files_total: int) -> None:
        """The plan is known: fetching begins."""
        with self._lock:
            self._phase, self._total, self._files_total = "pulling", bytes_total, files_total

    def enter(self, phase: str) -> None:
        """Name what the job does now: `pulling`, `unpacking`, `linking`."""
        with self._lock:
            self._phase = phase

    def have(self, count: int) -> None:
        """`count` bytes are here without being fetched now: cached, or resumed."""
        with self._lock:
            self._done += count

    def fetched(self, count: int) -> None:
        """`count` bytes arrived."""
        now = time.monotonic()
        with self._lock:
            self._done += count
            self._fetched += count
            if now - self._samples[-1][0] >= 0.25:
                self._samples.append((now, self._fetched))
                while now - self._samples[0][0] > RATE_WINDOW_SECONDS and len(self._samples) > 2:
                    self._samples.popleft()

    @property
    def fetched_bytes(self) -> int:
        """Bytes that arrived so far, whatever became of them."""
        return self._fetched

    def ready(self) -> None:
        """One more file is verified and committed."""
        with self._lock:
            self._files_ready += 1

    def snapshot(self) -> Snapshot:
        """The state now."""
        with self._lock:
            first_time, first_bytes = self._samples[0]
            span = time.monotonic() - first_time
            rate = (self._fetched - first_bytes) / span if span > 0 else 0.0
            return Snapshot(self._phase, self._done, self._total, rate, self._files_ready, self._files_total)


def sentence(model: str, snapshot: Snapshot) -> str:
    """What a waiting pod's owner reads in its events."""
    if snapshot.phase == "resolving" or not snapshot.bytes_total:
        return f"{snapshot.phase} {model}"
    if snapshot.phase == "unpacking" or snapshot.bytes_done >= snapshot.bytes_total:
        phase = snapshot.phase if snapshot.phase != "pulling" else "verifying"
        return f"{phase} {model}: all {human_bytes(snapshot.bytes_total)} are here, {_ready(snapshot)}"
    percent = 100 * snapshot.bytes_done // snapshot.bytes_total
    text = f"{snapshot.phase} {model}: {percent} % ({_of(snapshot.bytes_done, snapshot.bytes_total)})"
    if snapshot.rate > 0 and snapshot.eta_seconds is not None:
        text += f" at {human_bytes(snapshot.rate)}/s, about {human_seconds(snapshot.eta_seconds)} left"
    return f"{text}, {_ready(snapshot)}"


def human_bytes(count: float) -> str:
    """Decimal units, three significant digits: `1.2 GB`, `140 GB`, `512 B`."""
    for unit, size in _UNITS:
        if count >= size:
            return f"{_short(count / size)} {unit}"
    return f"{count:.0f} B"


def human_seconds(seconds: float) -> str:
    """`8 s`, `1 min 7 s`, `2 h 5 min`."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _ready(snapshot: Snapshot) -> str:
    return f"{snapshot.files_ready} of {snapshot.files_total} files ready"


def _of(done: int, total: int) -> str:
    for unit, size in _UNITS:
        if total >= size:
            return f"{_short(done / size)} of {_short(total / size)} {unit}"
    return f"{done} of {total} B"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
