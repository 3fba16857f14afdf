"""Publish calls under way, by target: how an unpublish reaches those that began before it, and how long each waits.

An unpublish ends every attempt on its target, under the target's lock. An attempt asks, under the same lock, before it
mounts anything. So whatever an unpublish overtook mounts nothing afterwards. All of it is memory: attempts die with the
driver.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from modelmount.config import Publish
from modelmount.errors import Cancelled, Pending
from modelmount.pull.job import Job, Waiter

SHORTEST_WAIT_SECONDS = 0.1
CANCEL_POLL_SECONDS = 0.1
"""How often a waiting call looks whether its caller is still there: two events can't be waited for together."""


class Call(Protocol):
    """The caller's patience: `deadline` on time.monotonic()'s clock, None without one; `cancelled` is set once nobody
    waits for the answer.
    """

    @property
    def deadline(self) -> float | None:
        """When the caller gives up."""

    @property
    def cancelled(self) -> threading.Event:
        """Set when it did."""


class Attempt:
    """One publish call, from its first check to its answer."""

    def __init__(self, path: str, call: Call, settings: Publish) -> None:
        """`settings` say how much of the caller's time may be used."""
        self._path, self._call, self._settings = path, call, settings
        self._lock = threading.Lock()
        self._overtaken = False
        self._waiter = Waiter()

    @property
    def patience_seconds(self) -> float:
        """How long the call may still wait for one thing: a share of its remaining time, never less than 100 ms."""
        deadline = self._call.deadline
        remaining = math.inf if deadline is None else deadline - time.monotonic()
        share = min(self._settings.wait_fraction * remaining, self._settings.wait_seconds)
        return max(SHORTEST_WAIT_SECONDS, share)

    def is_over(self) -> bool:
        """Whether the call has no business any more: `check` raises."""
        return self._overtaken or self._call.cancelled.is_set()

    def check(self) -> None:
        """Raise Pending once an unpublish overtook this call, Cancelled once its caller went away."""
        if self._overtaken:
            raise Pending(f"the volume was unpublished from {self._path!r} while it was being published")
        if self._call.cancelled.is_set():
            raise Cancelled(f"the caller went away before {self._path!r} was mounted; what was pulled is kept")

    def overtake(self) -> None:
        """An unpublish came: stop waiting, mount nothing."""
        with self._lock:
            self._overtaken = True
            self._waiter.abandon()

    def wait(self, job: Job) -> bool:
        """Whether `job` ended well within the call's patience. Raises what `check` does, and the job's own error."""
        with self._lock:
            waiter = self._waiter = Waiter()
            if self._overtaken:
                waiter.abandon()
        until = time.monotonic() + self.patience_seconds
        while True:
            left = until - time.monotonic()
            if job.wait(waiter, max(0.0, min(left, CANCEL_POLL_SECONDS))) is not None:
                return True
            self.check()
            if left <= 0:
                return False


class Attempts:
    """The attempts of one process."""

    def __init__(self) -> None:
        """None are under way."""
        self._lock = threading.Lock()
        self._by_path: dict[str, set[Attempt]] = {}

    @contextmanager
    def begin(self, path: str, call: Call, settings: Publish) -> Iterator[Attempt]:
        """An attempt on `path` for the length of the block."""
        attempt = Attempt(path, call, settings)
        with self._lock:
            self._by_path.setdefault(path, set()).add(attempt)
        try:
            yield attempt
        finally:
            with self._lock:
                others = self._by_path[path]
                others.discard(attempt)
                if not others:
                    del self._by_path[path]

    def overtake(self, path: str) -> None:
        """End every attempt on `path`; the caller holds the target's lock."""
        with self._lock:
            for attempt in self._by_path.get(path, ()):
                attempt.overtake()
