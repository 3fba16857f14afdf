"""One snapshot of a pull, behind the text of an RPC, the command line and metrics alike."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

RATE_WINDOW_SECONDS = 10.0
RATE_SECONDS = 1.0
"""Before so long there is no rate: what it would promise of the time left is nonsense."""
_SAMPLE_SECONDS = 0.25
_DAYS_FROM_SECONDS = 2 * 86400
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))

Phase = Literal["resolving", "pulling", "verifying", "unpacking", "linking", "pushing", "exporting"]
"""What a job does: finds out what is needed; fetches; has all bytes and hashes or syncs the last ones; unpacks the
rest of the last archive; links the tree. `pushing` and `exporting` are jobs of another kind, with one phase.
"""
PULL_PHASES: tuple[Phase, ...] = ("resolving", "pulling", "verifying", "unpacking", "linking")
MOVING: frozenset[Phase] = frozenset({"pulling", "pushing", "exporting"})
"""Phases in which bytes are on their way, at a rate."""
State = Literal["waiting", "fetching", "unpacking", "ready", "found"]
"""Where one file stands. `unpacking` is an archive whose bytes are all here; `found` was here before, or somebody else
fetched it meanwhile.
"""
ELSEWHERE = "what is missing is fetched by another pull on this node, which is waited for"
"""Why nothing comes then."""

Key = tuple[str, str]
"""What a file is known by: digest and form."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A file that a model needs: a blob as the plan names it. `name` is its path in the model, for an archive that has
    none its digest.
    """

    key: Key
    name: str
    bytes: int
    is_archive: bool = False


@dataclass(frozen=True, slots=True)
class File:
    """Where one file stands. `bytes_done` are of its download, resumed ones included."""

    name: str
    digest: str
    state: State
    bytes_done: int
    bytes_total: int

    @property
    def is_here(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.state in {"ready", "found"}

    @property
    def is_active(self) -> bool:
        """Whether it is being worked on."""
        return self.state in {"fetching", "unpacking"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a pull stands. Bytes and files are of the whole model, what was here before included; `rate` is bytes per
    second over the last 10 s. `files` are in the order in which they are fetched; none until the plan is known.
    `trouble` is why no bytes come, since they came last.
    """

    phase: Phase = "resolving"
    bytes_done: int = 0
    bytes_total: int = 0
    rate: float = 0.0
    files: tuple[File, ...] = ()
    trouble: str = ""

    @property
    def files_ready(self) -> int:
        """Files of which nothing is left to do."""
        return sum(file.is_here for file in self.files)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left at the present rate; None while there is no rate."""
        return (self.bytes_total - self.bytes_done) / self.rate if self.rate > 0 else None


class Progress:
    """The live counters of one job. Thread-safe; readers take snapshots, which are cheap: what hasn't changed since the
    last one is in the next one too.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts in phase `resolving` with nothing known."""
        self._clock = clock
        self._lock = threading.Lock()
        self._phase: Phase = "resolving"
        self._files: dict[Key, Counters] = {}
        self._total = self._done = self._fetched = 0
        self._worked = self._computed = 0.0
        self._trouble = ""
        self._came_at = clock()
        self._samples: deque[tuple[float, int]] = deque([(self._came_at, 0)])

    def expect(self, files: Iterable[Expected], phase: Phase = "pulling") -> None:
        """The plan is known: fetching begins. Again after something vanished, with the same files: then all wait."""
        with self._lock:
            self._phase = phase
            self._files = {each.key: Counters(self, each) for each in files}
            self._total = sum(counters._expected.bytes for counters in self._files.values())
            self._done = 0
            self._trouble = ""
            self._came_at = self._clock()
            self._samples = deque([(self._came_at, self._fetched)])

    def enter(self, phase: Phase) -> None:
        """Name what the job does now, where files don't tell."""
        with self._lock:
            self._phase = phase

    def file(self, key: Key) -> Counters:
        """The counters of an expected file."""
        return self._files[key]

    @property
    def fetched_bytes(self) -> int:
        """Bytes that arrived so far, whatever became of them."""
        return self._fetched

    def worked(self, seconds: float) -> None:
        """A receiving thread was at work for so long, not waiting for the other side. Counts as processor time, too."""
        with self._lock:
            self._worked += seconds
            self._computed += seconds

    @property
    def worked_seconds(self) -> float:
        """Time for which receiving threads were at work, all together."""
        return self._worked

    @property
    def processor_seconds(self) -> float:
        """Processor time that receiving threads used up, all together."""
        return self._computed

    def snapshot(self) -> Snapshot:
        """The state now."""
        with self._lock:
            rate = self._rate(self._clock())
            files = tuple([counters._file or counters._look() for counters in self._files.values()])
            phase = self._phase
            if phase == "pulling" and files and self._done >= self._total:
                phase = "unpacking" if any(file.state == "unpacking" for file in files) else "verifying"
            trouble = self._trouble if phase == "pulling" else ""
            return Snapshot(phase, self._done, self._total, rate, files, trouble)

    def _rate(self, now: float) -> float:
        """Of the last RATE_WINDOW_SECONDS, in which silence counts. The caller has the lock."""
        if now - self._came_at >= RATE_WINDOW_SECONDS:
            return 0.0
        since, before = self._samples[0]
        for at, count in self._samples:
            if at > now - RATE_WINDOW_SECONDS:
                break
            since, before = at, count
        span = now - since
        return (self._fetched - before) / min(span, RATE_WINDOW_SECONDS) if span >= RATE_SECONDS else 0.0

    # -- for Counters, which have the lock

    def _add(self, count: int) -> None:
        self._done += count

    def _arrived(self, count: int, worked: float, computed: float) -> None:
        now, came_at = self._clock(), self._came_at
        if now - came_at >= _SAMPLE_SECONDS and came_at > self._samples[-1][0]:
            self._samples.append((came_at, self._fetched))  # then there was silence
        self._came_at, self._trouble = now, ""
        self._done += count
        self._fetched += count
        self._worked += worked
        self._computed += computed
        if now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, self._fetched))
            while now - self._samples[1][0] >= RATE_WINDOW_SECONDS:
                self._samples.popleft()


class Counters:
    """One file's live counters; made by `Progress.expect`. Thread-safe."""

    def __init__(self, progress: Progress, expected: Expected) -> None:
        self._progress, self._expected = progress, expected
        self._lock = progress._lock
        self._done = 0
        self._end: Literal["ready", "found"] | None = None
        self._begun = False
        self._file: File | None = None

    @property
    def job_bytes(self) -> int:
        """Bytes that arrived so far for all files of the job."""
        return self._progress.fetched_bytes

    def have(self, count: int) -> None:
        """Work on it begins, or goes on: `count` bytes are here without being fetched now. Negative when bytes turned
        out to be of no use.
        """
        with self._lock:
            self._begun, self._file = True, None
            self._done += count
            self._progress._add(count)

    def fetched(self, count: int, worked: float = 0.0, computed: float = 0.0) -> None:
        """`count` bytes arrived, on which the thread that receives spent `worked` seconds: of its processor while it
        received and decrypted them, and all of it since. It used up `computed` seconds of its processor in all.
        """
        with self._lock:
            self._begun, self._file = True, None
            self._done += count
            self._progress._arrived(count, worked, computed)

    def failed(self, message: str) -> None:
        """A request for it ended with this, and will be made again."""
        with self._lock:
            self._progress._trouble = f"the last request failed: {message}"

    def elsewhere(self) -> None:
        """Somebody else is at it, and is waited for."""
        with self._lock:
            self._progress._trouble = ELSEWHERE

    def ready(self) -> None:
        """It is verified and committed."""
        self._finish("ready")

    def found(self) -> None:
        """It is here without this job's doing."""
        self._finish("found")
        with self._lock:
            self._progress._trouble = ""

    def _finish(self, end: Literal["ready", "found"]) -> None:
        with self._lock:
            self._progress._add(self._expected.bytes - self._done)
            self._done, self._end, self._file = self._expected.bytes, end, None

    def _look(self) -> File:
        """The file as it is now, kept until it changes. The caller has the lock."""
        expected = self._expected
        state: State = "fetching" if self._begun else "waiting"
        if self._end is not None:
            state = self._end
        elif self._begun and expected.is_archive and self._done >= expected.bytes:
            state = "unpacking"
        self._file = File(expected.name, expected.key[0], state, self._done, expected.bytes)
        return self._file


def sentence(model: str, snapshot: Snapshot) -> str:
    """What a waiting pod's owner reads in its events."""
    if snapshot.phase == "resolving" or not snapshot.bytes_total:
        return f"{snapshot.phase} {model}"
    if snapshot.phase not in MOVING:
        return f"{snapshot.phase} {model}: all {human_bytes(snapshot.bytes_total)} are here, {_ready(snapshot)}"
    percent = 100 * snapshot.bytes_done // snapshot.bytes_total
    text = f"{snapshot.phase} {model}: {percent} % ({of(snapshot.bytes_done, snapshot.bytes_total)})"
    if snapshot.rate > 0 and snapshot.eta_seconds is not None:
        text += f" at {human_bytes(snapshot.rate)}/s, about {human_seconds(snapshot.eta_seconds)} left"
    text = f"{text}, {_ready(snapshot)}"
    return f"{text}; {snapshot.trouble}" if snapshot.trouble else text


def human_bytes(count: float) -> str:
    """Decimal units, three significant digits: `1.2 GB`, `140 GB`, `512 B`."""
    for unit, size in _UNITS:
        if count >= size:
            return f"{_short(count / size)} {unit}"
    return f"{count:.0f} B"


def human_seconds(seconds: float) -> str:
    """`8 s`, `1 min 7 s`, `2 h 5 min`, `5 d 2 h`."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < _DAYS_FROM_SECONDS:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _ready(snapshot: Snapshot) -> str:
    return f"{snapshot.files_ready} of {len(snapshot.files)} files ready"


def of(done: int, total: int) -> str:
    """Both in the total's unit: `60.1 of 140 GB`."""
    for unit, size in _UNITS:
        if total >= size:
            return f"{_short(done / size)} of {_short(total / size)} {unit}"
    return f"{done} of {total} B"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
