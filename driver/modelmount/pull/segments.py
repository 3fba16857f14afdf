"""The bytes of one blob that are still missing, cut into segments for several connections. Pure, apart from one lock.

Segments are handed out from the front, so that a hasher close behind finds the bytes in the page cache. Each belongs to
one thread at a time; what that thread doesn't finish goes back and is handed out again from where it stopped.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable


class Segment:
    """The bytes from `start` to `end`; those below `position` are written. Owned by one thread."""

    __slots__ = ("end", "position", "start")

    def __init__(self, start: int, end: int) -> None:
        """Nothing of it is written yet."""
        self.start, self.end, self.position = start, end, start

    @property
    def missing(self) -> int:
        """Bytes that are still to come."""
        return self.end - self.position


class Segments:
    """All segments of a blob of `size` bytes. Thread-safe.

    `frontier` is the end of what is written without a gap from the blob's beginning: what may be hashed.
    """

    def __init__(self, size: int, missing: Iterable[tuple[int, int]], length: int) -> None:
        """Cut the `missing` ranges, sorted and apart from each other, into segments of at most `length` bytes."""
        self._lock = threading.Lock()
        self._size = size
        self._free = [
            Segment(start, min(start + length, end)) for first, end in missing for start in range(first, end, length)
        ]
        self._free.reverse()
        self._open: list[Segment] = list(reversed(self._free))
        self.frontier = self._open[0].start if self._open else size

    def take(self, below: int) -> Segment | None:
        """The first segment nobody has, unless it begins at or behind `below`; the caller owns it."""
        with self._lock:
            if not self._free or self._free[-1].position >= below:
                return None
            return self._free.pop()

    def advance(self, segment: Segment, position: int) -> int:
        """The owner has written everything below `position`; the frontier now."""
        with self._lock:
            segment.position = position
            return self._moved()

    def finish(self, segment: Segment) -> int:
        """The owner has written all of it; the frontier now."""
        with self._lock:
            segment.position = segment.end
            self._open.remove(segment)
            return self._moved()

    def give_back(self, segment: Segment) -> None:
        """The owner stops in the middle; the rest is handed out again, in its place."""
        with self._lock:
            bisect.insort(self._free, segment, key=lambda free: -free.start)

    def merge(self) -> None:
        """Make one segment of everything behind the frontier, for a source that ignores ranges. Nobody may own one."""
        with self._lock:
            rest = Segment(self.frontier, self._size)
            self._open, self._free = ([rest], [rest]) if rest.missing else ([], [])

    @property
    def has_free(self) -> bool:
        """Whether there is something to take."""
        with self._lock:
            return bool(self._free)

    @property
    def is_complete(self) -> bool:
        """Whether everything is written."""
        with self._lock:
            return not self._open

    def _moved(self) -> int:
        self.frontier = self._open[0].position if self._open else self._size
        return self.frontier
