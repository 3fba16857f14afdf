"""A limit on bytes a second, for all blobs together: what somebody waits for comes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from modelmount.oci.descriptor import Descriptor
from modelmount.sources.base import BlobSource, Opened

BURST_SECONDS: Final = 0.1
"""So much of an idle time can be made up for."""
PIECE_SECONDS: Final = 0.02
PIECE_BYTES: Final = (4 << 10, 128 << 10)
"""One receive takes about this long at the limit, within these bounds: many readers have their turns soon."""
_LOOK_SECONDS: Final = 0.25
_NOTHING_SECONDS: Final = 1e-9
"""Less than a clock tells apart."""


class Bandwidth:
    """At most `rate` bytes a second for all who share it: readers whose bytes are awaited first come, first served, and
    the others like that among themselves, in what those leave. Thread-safe.
    """

    def __init__(
        self, rate: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """`rate` is above 0."""
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._lock = threading.Lock()
        self._awaited_bytes = 0
        self._awaited_until = self._all_until = clock()
        self.piece_bytes = max(PIECE_BYTES[0], min(int(rate * PIECE_SECONDS), PIECE_BYTES[1]))

    def spend(self, count: int, *, awaited: bool = True, stopped: Callable[[], bool] = lambda: False) -> None:
        """`count` bytes came: wait until they fit into the rate, or until `stopped`. Unless they are `awaited`, what is
        awaited goes before them also where it comes later.
        """
        with self._lock:
            now = self._clock()
            end = self._all_until = self._behind(self._all_until, now, count)
            if awaited:
                end = self._awaited_until = self._behind(self._awaited_until, now, count)
                self._awaited_bytes += count
            before = self._awaited_bytes
        while not stopped():
            later = 0 if awaited else self._awaited_bytes - before
            wait = end + later / self._rate - self._clock()
            if wait <= _NOTHING_SECONDS:
                return
            self._sleep(min(wait, _LOOK_SECONDS))

    def _behind(self, until: float, now: float, count: int) -> float:
        """When `count` bytes are over that begin when it is `until`."""
        return max(until, now - BURST_SECONDS) + count / self._rate


class ThrottledSource:
    """Another source within a bandwidth. Thread-safe."""

    def __init__(self, source: BlobSource, bandwidth: Bandwidth, is_awaited: Callable[[], bool] = lambda: True) -> None:
        """`bandwidth` is shared with other sources. `is_awaited` says whether anybody waits for these blobs now."""
        self._source, self._bandwidth, self._is_awaited = source, bandwidth, is_awaited

    @property
    def name(self) -> str:
        """The other source's."""
        return self._source.name

    @property
    def origin(self) -> BlobSource:
        """The other source's, within the same bandwidth."""
        return ThrottledSource(self._source.origin, self._bandwidth, self._is_awaited)

    @property
    def elsewhere(self) -> Mapping[str, int]:
        """The other source's."""
        return self._source.elsewhere

    def open(self, descriptor: Descriptor, offset: int, end: int | None = None) -> Opened:
        """Open it at the other source."""
        return _Throttled(self._source.open(descriptor, offset, end), self._bandwidth, self._is_awaited)

    def blame(self, descriptor: Descriptor, reason: str) -> bool:
        """It is the other source's."""
        return self._source.blame(descriptor, reason)


class _Throttled(Opened):
    """An open blob whose bytes are handed out no faster than they may come; what isn't read fills TCP's window."""

    def __init__(self, opened: Opened, bandwidth: Bandwidth, is_awaited: Callable[[], bool]) -> None:
        self._opened, self._bandwidth, self._is_awaited = opened, bandwidth, is_awaited
        self._interrupted = False

    @property
    def offset(self) -> int:
        return self._opened.offset

    def readinto(self, view: memoryview) -> int:
        count = self._opened.readinto(view[: self._bandwidth.piece_bytes])
        self._bandwidth.spend(count, awaited=self._is_awaited(), stopped=lambda: self._interrupted)
        return count

    def interrupt(self) -> None:
        self._interrupted = True
        self._opened.interrupt()

    def close(self) -> None:
        self._opened.close()
