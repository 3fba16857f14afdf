"""The node's connections, shared by its jobs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

_LOOK_SECONDS = 0.25


class Connections:
    """At most `limit` at a time on this node, and at most `of_registry(registry)` to one registry. Thread-safe.

    A job that has none waits for its first; more are taken only while some are free, so that one job's thirty never
    keep another from having one for longer than a segment takes.
    """

    def __init__(self, limit: int, of_registry: Callable[[str], int]) -> None:
        """All are free."""
        self._limit, self._of_registry = limit, of_registry
        self._taken: Counter[str] = Counter()
        self._waiting = 0
        self._changed = threading.Condition()

    def most(self, registry: str) -> int:
        """The most that one job may have."""
        return min(self._limit, self._of_registry(registry))

    def acquire(self, registry: str, *, wait: bool, cancelled: Callable[[], bool]) -> bool:
        """Take one. False when none is free and the caller doesn't `wait`, or once `cancelled`."""
        with self._changed:
            if not wait:
                if self._waiting or not self._free(registry):
                    return False
            else:
                self._waiting += 1
                try:
                    while not self._free(registry):
                        if cancelled():
                            return False
                        self._changed.wait(_LOOK_SECONDS)
                finally:
                    self._waiting -= 1
            self._taken[registry] += 1
            return True

    def release(self, registry: str) -> None:
        """Give one back."""
        with self._changed:
            self._taken[registry] -= 1
            self._changed.notify_all()

    @property
    def is_wanted(self) -> bool:
        """Whether a job waits for its first: whoever has several should give one back when it can."""
        return self._waiting > 0

    def _free(self, registry: str) -> bool:
        return self._taken.total() < self._limit and self._taken[registry] < self._of_registry(registry)
