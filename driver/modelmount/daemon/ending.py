"""Why and when the process should end."""

from __future__ import annotations

import queue
import signal
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Asked:
    """A reason to end, as a sentence's rest, and the exit status that goes with it."""

    reason: str
    status: int


class Ending:
    """Collects reasons to end; the first one counts. Every method may be called from any thread, and from a signal
    handler.

    A SimpleQueue, because its `put` may interrupt its own `get`: an Event's `set`, called by a handler in the middle of
    the same Event's `wait`, can wait for ever.
    """

    def __init__(self) -> None:
        self._reasons: queue.SimpleQueue[Asked] = queue.SimpleQueue()

    def catch_signals(self) -> None:
        """Take SIGTERM and SIGINT as reasons, from now on and once; the next one ends the process as by default. Main
        thread only.
        """
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def give_up(self, reason: str) -> None:
        """End with status 1."""
        self._reasons.put(Asked(reason, 1))

    @property
    def asked(self) -> bool:
        """Whether there is a reason yet."""
        return not self._reasons.empty()

    def wait(self) -> Asked:
        """The first reason, once there is one. Call it once."""
        return self._reasons.get()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        self._reasons.put(Asked(f"got {signal.Signals(number).name}", 0))
