"""A limit on bytes a second, for all blobs together."""

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


class Bandwidth:
    """At most `rate` bytes a second for all who share it, first come, first served. Thread-safe."""

    def __init__(
        self, rate: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """`rate` is above 0."""
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._lock = threading.Lock()
        self._free_at = clock()
        self.piece_bytes = max(PIECE_BYTES[0], min(int(rate * PIECE_SECONDS), PIECE_BYTES[1]))

    def spend(self, count: int) -> None:
        """`count` bytes came: wait until they fit into the rate."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + count / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)


class ThrottledSource:
    """Another source within a bandwidth. Thread-safe."""

    def __init__(self, source: BlobSource, bandwidth: Bandwidth) -> None:
        """`bandwidth` is shared with other sources."""
        self._source, self._bandwidth = source, bandwidth

    @property
    def name(self) -> str:
        """The other source's."""
        return self._source.name

    @property
    def origin(self) -> BlobSource:
        """The other source's, within the same bandwidth."""
        return ThrottledSource(self._source.origin, self._bandwidth)

    @property
    def elsewhere(self) -> Mapping[str, int]:
        """The other source's."""
        return self._source.elsewhere

    def open(self, descriptor: Descriptor, offset: int, end: int | None = None) -> Opened:
        """Open it at the other source."""
        return _Throttled(self._source.open(descriptor, offset, end), self._bandwidth)

    def blame(self, descriptor: Descriptor, reason: str) -> bool:
        """It is the other source's."""
        return self._source.blame(descriptor, reason)


class _Throttled(Opened):
    """An open blob whose bytes are handed out no faster than they may come; what isn't read fills TCP's window."""

    def __init__(self, opened: Opened, bandwidth: Bandwidth) -> None:
        self._opened, self._bandwidth = opened, bandwidth

    @property
    def offset(self) -> int:
        return self._opened.offset

    def readinto(self, view: memoryview) -> int:
        count = self._opened.readinto(view[: self._bandwidth.piece_bytes])
        self._bandwidth.spend(count)
        return count

    def interrupt(self) -> None:
        self._opened.interrupt()

    def close(self) -> None:
        self._opened.close()
