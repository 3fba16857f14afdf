"""Work that pulls, as a person or a program watches it. What is pulled stays, however the work ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Generic, TypeVar

from prometheus_client import REGISTRY

from modelmount import wiring
from modelmount.cli.display import display
from modelmount.cli.output import Output
from modelmount.errors import Cancelled
from modelmount.oci.reference import Reference
from modelmount.pull import progress
from modelmount.pull.job import Waiter
from modelmount.pull.resolver import Model
from modelmount.registry.credentials import Credential
from modelmount.snapshots.tree import Tree
from modelmount.volumes.volume import VolumeSpec

LOOK_SECONDS = 0.2
"""How often the display moves on a terminal."""

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
    with _interruptible(), display(str(reference), output) as shown:
        try:
            worker.thread.start()
            while not worker.ended.wait(LOOK_SECONDS):
                shown.show(_snapshot(node))
        except KeyboardInterrupt:
            worker.cancelled.set()
            raise Cancelled(_kept(node, reference)) from None
    return Watched(worker.result(), _fetched() - before, time.monotonic() - started)


def pull(
    node: wiring.Node, spec: VolumeSpec, credential: Credential, cancelled: threading.Event, *, warm: bool = False
) -> tuple[Model, Tree]:
    """Have here what a volume of these attributes would show; the node's job holds it until the node is closed. What is
    fetched stays in the page cache only when `warm`. Raises what resolving and pulling do.
    """
    model = node.resolver.resolve(spec.reference, spec.pull_policy, credential, spec.choice)
    job = node.puller.ensure(model, spec.selection, credential, prefetch=not warm)
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
    snapshot = _snapshot(node)
    if not snapshot.bytes_done:
        return f"interrupted; nothing of {reference} was pulled yet"
    kept = progress.of(snapshot.bytes_done, snapshot.bytes_total)
    return f"interrupted; {kept} of {reference} are kept, the same command goes on from there"


def _snapshot(node: wiring.Node) -> progress.Snapshot:
    """Where the node's only pull stands; before it begins, nothing is known."""
    return next((job.snapshot() for job in node.puller.jobs()), progress.Snapshot())


def _fetched() -> int:
    """Bytes of blobs that this process received so far."""
    return int(REGISTRY.get_sample_value("modelmount_fetched_bytes_total") or 0)
