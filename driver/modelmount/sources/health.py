"""Which of the node's mirrors are worth asking: one that fails is left alone for a while, by all jobs, and one that has
as many connections as it may have is left to who has them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

log = logging.getLogger(__name__)

FIRST_SECONDS: Final = 10.0
LAST_SECONDS: Final = 600.0
"""How long a mirror is left alone: twice as long after each failure in a row."""


class Notes(Protocol):
    """Who is told of mirrors that are set aside; times are wall-clock seconds. Called by many threads, outside of every
    lock, and raises nothing.
    """

    def aside(self, mirror: str, since: float, until: float, reason: str) -> None:
        """It was set aside. `since` stays the same until it answers."""

    def back(self, mirror: str) -> None:
        """It answered."""


@dataclass(slots=True)
class _Condition:
    """`era` counts how often it was set aside: what is told about an older one is old news. While it is `suspect`, one
    request at a time tries it. `since` is wall-clock time, `until` the clock's.
    """

    failures: int = 0
    since: float = 0.0
    until: float = 0.0
    era: int = 0
    suspect: bool = False
    tried: bool = False


class Health:
    """The conditions of mirrors by name. Thread-safe; in memory only: a new process asks each mirror once."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        places: Mapping[str, threading.Semaphore] | None = None,
        notes: Notes | None = None,
    ) -> None:
        """All are well. A mirror's place in `places` is one open connection; mirrors on one host share theirs, and one
        without an entry has as many as it likes.
        """
        self._clock, self._notes = clock, notes
        self._places = places or {}
        self._lock = threading.Lock()
        self._conditions: dict[str, _Condition] = {}

    def ask(self, name: str) -> Turn | None:
        """A turn to ask the mirror; None while it is set aside, while another request finds out whether it is back, or
        when all its places are taken. Whoever gets one closes it.
        """
        place = self._places.get(name)
        with self._lock:
            condition = self._conditions.setdefault(name, _Condition())
            if condition.suspect and (condition.tried or self._clock() < condition.until):
                return None
            if place is not None and not place.acquire(blocking=False):
                return None
            condition.tried = condition.suspect
            return Turn(self, name, condition.era, place, trial=condition.suspect)

    def failed(self, name: str, era: int | None, reason: str, seconds: float = 0.0) -> None:
        """Set the mirror aside, for `seconds` at least, unless it was since `era` (None: now)."""
        with self._lock:
            condition = self._conditions.setdefault(name, _Condition())
            if era is not None and era != condition.era:
                return
            wait = max(min(FIRST_SECONDS * 2 ** min(condition.failures, 16), LAST_SECONDS), seconds)
            condition.failures += 1
            condition.era += 1
            condition.until = self._clock() + wait
            now = time.time()
            since = condition.since = condition.since if condition.suspect else now
            condition.suspect, condition.tried = True, False
        log.warning("mirror %s is not asked for %.0f s: %s", name, wait, reason)
        if self._notes is not None:
            self._notes.aside(name, since, now + wait, reason)

    def heard(self, name: str, era: int) -> None:
        """It answered: everybody may ask it again."""
        with self._lock:
            condition = self._conditions[name]
            if era != condition.era:
                return
            condition.suspect = condition.tried = False
        if self._notes is not None:
            self._notes.back(name)

    def served(self, name: str, era: int) -> None:
        """It kept a whole promise: what it failed before is forgotten."""
        with self._lock:
            condition = self._conditions[name]
            if era == condition.era:
                condition.failures = 0

    def untried(self, name: str, era: int) -> None:
        """The request that was to find out came to no end: another one may."""
        with self._lock:
            condition = self._conditions[name]
            if era == condition.era:
                condition.tried = False


class Turn:
    """One request to a mirror, and how it went. For one thread at a time."""

    def __init__(self, health: Health, name: str, era: int, place: threading.Semaphore | None, *, trial: bool) -> None:
        """Made by `Health.ask`."""
        self._health, self._name, self._era, self._place, self._trial = health, name, era, place, trial

    def heard(self) -> None:
        """The mirror gave a sane answer, or the first bytes."""
        if self._trial:
            self._trial = False
            self._health.heard(self._name, self._era)

    def served(self) -> None:
        """All that was asked for came."""
        self.heard()
        self._health.served(self._name, self._era)

    def failed(self, reason: str, seconds: float = 0.0) -> None:
        """It didn't answer, or stopped in the middle."""
        self._trial = False
        self._health.failed(self._name, self._era, reason, seconds)

    def close(self) -> None:
        """The request is over, however, and its connection another's. Twice is harmless."""
        if self._trial:
            self._trial = False
            self._health.untried(self._name, self._era)
        place, self._place = self._place, None
        if place is not None:
            place.release()
