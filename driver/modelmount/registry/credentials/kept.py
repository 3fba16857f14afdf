"""Answers of programs, kept for as long as those say; asked for once by all who want the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from modelmount.registry.recent import Recent

LONGEST_SECONDS: Final = 86400.0
KEPT: Final = 256

Entries = Mapping[str, object]
"""Credentials by the registries and repositories they are for, as in the `auths` of a docker configuration."""
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program has, what else that answers (`key`), and for how many seconds."""

    key: Key
    entries: Entries = field(repr=False)
    seconds: float


class Kept:
    """What programs answered, in memory only. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Empty; `clock` measures how long something is kept."""
        self._clock = clock
        self._known: Recent[Key, tuple[Entries, float]] = Recent(KEPT)
        self._asking: Recent[Key, threading.Lock] = Recent(KEPT)

    def get(self, keys: Sequence[Key], seconds: float, ask: Callable[[], Answer]) -> Entries:
        """What is kept under the first of `keys`, else what `ask` returns, which is kept under its own key.

        Of several callers with the same keys one asks, and the others wait for it, `seconds` at most. Raises what `ask`
        raises, to the caller who asked.
        """
        known = self._peek(keys)
        if known is not None:
            return known
        lock = self._asking.setdefault(keys[0], threading.Lock)
        held = lock.acquire(timeout=seconds)
        try:
            known = self._peek(keys)
            if known is not None:
                return known
            answer = ask()
            if answer.seconds > 0:
                until = self._clock() + min(answer.seconds, LONGEST_SECONDS)
                self._known.put(answer.key, (answer.entries, until))
            return answer.entries
        finally:
            if held:
                lock.release()

    def _peek(self, keys: Sequence[Key]) -> Entries | None:
        for key in keys:
            found = self._known.get(key)
            if found is not None and self._clock() < found[1]:
                return found[0]
        return None
