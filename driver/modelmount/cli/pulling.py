"""Work that pulls, as a person or a program watches it. What is pulled stays, however the work ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Generic, Protocol, TypeVar

from prometheus_client import REGISTRY
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from modelmount import wiring
from modelmount.cli.output import Output
from modelmount.errors import Cancelled
from modelmount.oci.reference import Reference
from modelmount.pull import progress
from modelmount.pull.job import Waiter
from modelmount.pull.resolver import Model, PullPolicy
from modelmount.registry.credentials import Credential
from modelmount.snapshots.tree import Tree

LOOK_SECONDS = 0.2
"""How often the display moves on a terminal."""
TELL_SECONDS = 2.0
"""How often a program is told, and when a log is told first; a quick pull needs no words."""
LOG_SECONDS = 10.0
"""How often a log is told afterwards."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Watched(Generic[T]):
    """What the work gave, and what it took: `fetched_bytes` of blobs came over the network in `seconds`."""

    result: T
    fetched_bytes: int
    seconds: float


def watch(node: wiring.Node, reference: Reference, output: Output, work: Callable[[threading.Event], T]) -> Watched[T]:
    """Run `work` in a thread of its own and show the progress of the node's pull meanwhile: a bar or lines on standard
    error, objects with --json. The event it gets is set when it should end.

    Raises what `work` raises. SIGINT and SIGTERM raise Cancelled at once, saying what is kept; the caller closes the
    node, which ends the pull.
    """
    started, before = time.monotonic(), _fetched()
    worker = _Worker(work)
    with _interruptible(), _display(str(reference), output) as display:
        try:
            worker.thread.start()
            while not worker.ended.wait(LOOK_SECONDS):
                for job in node.puller.jobs():
                    display.show(job.snapshot())
        except KeyboardInterrupt:
            worker.cancelled.set()
            raise Cancelled(_kept(node, reference)) from None
    return Watched(worker.result(), _fetched() - before, time.monotonic() - started)


def pull(
    node: wiring.Node, reference: Reference, policy: PullPolicy, credential: Credential, cancelled: threading.Event
) -> tuple[Model, Tree]:
    """Have the model here; the node's job holds it until the node is closed. Raises what resolving and pulling do."""
    model = node.resolver.resolve(reference, policy, credential)
    job = node.puller.ensure(model, "", credential)
    while (tree := job.wait(Waiter(), LOOK_SECONDS)) is None:
        if cancelled.is_set():
            raise Cancelled("interrupted")
    return model, tree


class _Worker(Generic[T]):
    """One call in a thread that doesn't keep the process alive: it may be deep in a request nobody waits for."""

    def __init__(self, work: Callable[[threading.Event], T]) -> None:
        self.cancelled, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, args=(work,), name="work", daemon=True)
        self._results: list[T] = []
        self._error: BaseException | None = None

    def result(self) -> T:
        """What the call returned; raises what it raised. Once it has ended."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self, work: Callable[[threading.Event], T]) -> None:
        try:
            self._results.append(work(self.cancelled))
        except BaseException as e:  # noqa: BLE001 - raised by `result`, in the thread that asks
            self._error = e
        finally:
            self.ended.set()


class _Display(Protocol):
    """Shows where a pull stands; told often, it decides itself what is worth showing."""

    def show(self, snapshot: progress.Snapshot) -> None: ...


@contextlib.contextmanager
def _display(reference: str, output: Output) -> Iterator[_Display]:
    console = Console(stderr=True)
    if output.json:
        yield _Occasional(
            lambda s: output.object({"progress": {**asdict(s), "eta_seconds": s.eta_seconds}}), TELL_SECONDS
        )
    elif not console.is_terminal:
        yield _Occasional(lambda s: output.note(progress.sentence(reference, s)), LOG_SECONDS)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[files]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield _Bar(bar)


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("resolving", total=None, files="")

    def show(self, snapshot: progress.Snapshot) -> None:
        self._bar.update(
            self._task,
            description=snapshot.phase,
            completed=snapshot.bytes_done,
            total=snapshot.bytes_total or None,
            files=f"{snapshot.files_ready} of {snapshot.files_total} files" if snapshot.files_total else "",
        )


class _Occasional:
    """Tells where a pull stands now and then, and only what is new."""

    def __init__(self, tell: Callable[[progress.Snapshot], None], seconds: float) -> None:
        self._tell, self._seconds = tell, seconds
        self._next = time.monotonic() + TELL_SECONDS
        self._last: progress.Snapshot | None = None

    def show(self, snapshot: progress.Snapshot) -> None:
        now = time.monotonic()
        if now >= self._next and snapshot != self._last:
            self._next, self._last = now + self._seconds, snapshot
            self._tell(snapshot)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM interrupts like SIGINT does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kept(node: wiring.Node, reference: Reference) -> str:
    for job in node.puller.jobs():
        snapshot = job.snapshot()
        if snapshot.bytes_done:
            kept = f"{progress.human_bytes(snapshot.bytes_done)} of {progress.human_bytes(snapshot.bytes_total)}"
            return f"interrupted; {kept} of {reference} are kept, the same command goes on from there"
    return f"interrupted; nothing of {reference} was pulled yet"


def _fetched() -> int:
    """Bytes of blobs that this process received so far."""
    return int(REGISTRY.get_sample_value("modelmount_fetched_bytes_total") or 0)
