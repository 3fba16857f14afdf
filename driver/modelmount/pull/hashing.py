"""A hash thread close behind the writer: it reads what was just appended back out of the page cache, so that hashing
and receiving overlap.

sha256 costs more than the transport does; in one thread the two would add up. A blob that fits into a few pieces is
hashed in place.
"""

from __future__ import annotations

import os
import threading

from modelmount.oci.digest import Digest

READ_BYTES = 1 << 20
INLINE_BYTES = 4 << 20


class Follower:
    """Hashes `fd` from 0 up to where `advance` has allowed. One writer thread calls `advance`, then `finish` or `stop`
    exactly once.
    """

    def __init__(self, fd: int, digest: Digest, size: int) -> None:
        """Small blobs get no thread: `finish` hashes them."""
        self._fd, self._hasher = fd, digest.hasher()
        self._limit = self._position = 0
        self._end = self._stopped = False
        self._error: OSError | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        if size > INLINE_BYTES:
            self._thread = threading.Thread(target=self._run, name=f"hash-{digest.hex[:12]}", daemon=True)
            self._thread.start()

    @property
    def position(self) -> int:
        """Everything below is hashed. A blob that is hashed in place is never waited for, so it counts as hashed."""
        return self._limit if self._thread is None else self._position

    def advance(self, limit: int) -> None:
        """Bytes below `limit` are in the file. Any thread may say so; the farthest word counts."""
        with self._changed:
            if limit > self._limit:
                self._limit = limit
                self._changed.notify()

    def finish(self) -> str:
        """All is written: the hex digest of everything below the last limit. Raises the OSError of a failed read."""
        if self._thread is None:
            self._consume(self._limit)
        else:
            with self._changed:
                self._end = True
                self._changed.notify()
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._hasher.hexdigest()

    def stop(self) -> None:
        """Give up; nothing of the file is touched afterwards."""
        if self._thread is not None and self._thread.is_alive():
            with self._changed:
                self._stopped = True
                self._changed.notify()
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._limit <= self._position and not self._end and not self._stopped:
                    self._changed.wait()
                limit = self._limit
                if self._stopped or (self._end and limit <= self._position):
                    return
            try:
                self._consume(limit)
            except OSError as e:
                self._error = e
                return

    def _consume(self, limit: int) -> None:
        buffer = memoryview(bytearray(min(READ_BYTES, max(1, limit - self._position))))
        while self._position < limit and not self._stopped:
            count = os.preadv(self._fd, [buffer[: limit - self._position]], self._position)
            if not count:
                raise OSError(5, "the download shrank while it was hashed")
            self._hasher.update(buffer[:count])
            self._position += count
