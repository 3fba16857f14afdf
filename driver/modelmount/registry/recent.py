"""A bounded memory: what was used least recently is forgotten first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A dictionary of at most `limit` entries. Thread-safe."""

    def __init__(self, limit: int) -> None:
        """Empty."""
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The entry, which counts as a use."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def put(self, key: K, value: V) -> None:
        """Set the entry."""
        with self._lock:
            self._put(key, value)

    def setdefault(self, key: K, make: Callable[[], V]) -> V:
        """The entry; made when there is none, by one caller only."""
        with self._lock:
            if key not in self._entries:
                self._put(key, make())
            self._entries.move_to_end(key)
            return self._entries[key]

    def _put(self, key: K, value: V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)
