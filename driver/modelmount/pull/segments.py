"""The bytes of one blob that are still missing, and who fetches which of them.

Ranges are handed out from the front, so that a hasher close behind finds the bytes in the page cache. Each belongs to
one thread at a time; what that thread doesn't finish goes back and is handed out again from where it stopped.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

ALIGNMENT_BYTES = 1 << 20
"""Segments are cut at multiples of this, so that the pieces of a journal meet where segments do."""


class Interruptible(Protocol):
    """Something that is waited for."""

    def interrupt(self) -> None:
        """End the waiting; harmless when it is over."""


class Segment:
    """The bytes from `position` to `end` are still to come. The owner's thread moves `position`; `end` may be drawn in
    by others, but never to less than a segment's length ahead of it. `renew` asks the owner for a new connection,
    `leave` to be done with it; `stream` is what the owner reads.
    """

    __slots__ = ("end", "leave", "position", "renew", "start", "stream")

    def __init__(self, start: int, end: int) -> None:
        """Nothing of it is written yet."""
        self.start = self.position = start
        self.end = end
        self.renew = self.leave = False
        self.stream: Interruptible | None = None

    def give_up(self) -> None:
        """Have the owner leave what it reads, also where nothing comes of it. Any thread may."""
        self.renew = True
        stream = self.stream
        if stream is not None:
            stream.interrupt()

    @property
    def missing(self) -> int:
        """Bytes that are still to come."""
        return self.end - self.position


class Segments:
    """All that is missing of one blob. Thread-safe."""

    def __init__(self, missing: Iterable[tuple[int, int]]) -> None:
        """The `missing` ranges, sorted and apart from each other."""
        self._lock = threading.Lock()
        self._free = list(missing)
        self._owned: list[Segment] = []

    @property
    def owned(self) -> Sequence[Segment]:
        """The segments that threads are at."""
        with self._lock:
            return tuple(self._owned)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        with self._lock:
            return not self._free and not self._owned

    @property
    def free_bytes(self) -> int:
        """How much of it nobody is at."""
        with self._lock:
            return sum(end - start for start, end in self._free)

    @property
    def missing_bytes(self) -> int:
        """How much nobody has written yet."""
        with self._lock:
            return sum(end - start for start, end in self._free) + sum(each.missing for each in self._owned)

    def is_first(self, segment: Segment) -> bool:
        """Whether no other segment that is owned lies before this one."""
        with self._lock:
            return all(segment.start <= other.start for other in self._owned)

    def take(self, length: int | None, below: int) -> Segment | None:
        """The first `length` bytes (None: all) of the first range that nobody has; None when there is none, or when it
        begins at or behind `below`. The caller owns the segment until `finish` or `give_back`.
        """
        with self._lock:
            if not self._free or self._free[0][0] >= below:
                return None
            start, end = self._free.pop(0)
            if length is not None and end - start > length:
                cut = _aligned(start + length, end)
                if cut < end:
                    self._free.insert(0, (cut, end))
                end = cut
            segment = Segment(start, end)
            self._owned.append(segment)
            return segment

    def share(self, length: int, front: int) -> bool:
        """Draw in the end of the owned segment with most left, so that others can take what lies behind; whether there
        was one with enough. Its owner stops at the new end. Nobody can begin behind `front` yet, so what is free there
        counts, too: whoever begins before it comes to it.
        """
        with self._lock:
            for segment in sorted(self._owned, key=lambda each: each.missing, reverse=True):
                cut = min(_aligned(segment.position + length, segment.end), front)
                if cut - segment.position < ALIGNMENT_BYTES:
                    continue
                behind = segment.end
                at = bisect.bisect_left(self._free, (behind,))
                if behind > front and at < len(self._free) and self._free[at][0] == behind:
                    behind = self._free[at][1]
                if behind - cut >= length:
                    if behind > segment.end:
                        del self._free[at]
                    bisect.insort(self._free, (cut, behind))
                    segment.end = cut
                    return True
            return False

    def finish(self, segment: Segment) -> None:
        """The owner is done with it: what it didn't write is free again."""
        with self._lock:
            self._owned.remove(segment)
            if segment.missing > 0:
                bisect.insort(self._free, (segment.position, segment.end))

    def extend(self, segment: Segment, size: int) -> int | None:
        """Make everything from the owned `segment` to `size` its own, for a source that sends a blob only as a whole;
        how many bytes of what is added were written already. None while others own something.
        """
        with self._lock:
            if self._owned != [segment]:
                return None
            behind = [(max(start, segment.end), end) for start, end in self._free if end > segment.end]
            missing = sum(end - start for start, end in behind)
            self._free = [(start, end) for start, end in self._free if end <= segment.end]
            written = size - segment.end - missing
            segment.end = size
            return written

    def merge(self) -> int:
        """Make one range from the first missing byte to the last, for a source that sends a blob only as a whole; how
        many bytes of it were written already. Nobody may own a segment.
        """
        with self._lock:
            if not self._free:
                return 0
            missing = sum(end - start for start, end in self._free)
            self._free = [(self._free[0][0], self._free[-1][1])]
            return self._free[0][1] - self._free[0][0] - missing


def _aligned(position: int, end: int) -> int:
    """The next cut at or behind `position`, at most `end`."""
    return min(end, -(-position // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
