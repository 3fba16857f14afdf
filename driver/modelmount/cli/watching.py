"""Long work, as a person or a program watches it, and as they end it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Generic, TypeVar

from modelmount.cli.display import display
from modelmount.cli.output import Output
from modelmount.errors import Cancelled
from modelmount.pull.progress import Snapshot

LOOK_SECONDS = 0.2
"""How often the display moves on a terminal."""

T = TypeVar("T")


def watch(
    what: str,
    output: Output,
    work: Callable[[threading.Event], T],
    snapshot: Callable[[], Snapshot],
    kept: Callable[[Snapshot], str],
) -> T:
    """Run `work` in a thread of its own and show its progress meanwhile: a bar or lines on standard error, objects with
    --json. The event it gets is set when it should end.

    Raises what `work` raises. SIGINT and SIGTERM raise Cancelled at once, with what `kept` says; the caller then closes
    what the work waits for.
    """
    worker = _Worker(work)
    with _interruptible(), display(what, output) as shown:
        try:
            worker.thread.start()
            while not worker.ended.wait(LOOK_SECONDS):
                shown.show(snapshot())
        except KeyboardInterrupt:
            worker.cancelled.set()
            raise Cancelled(kept(snapshot())) from None
    return worker.result()


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
