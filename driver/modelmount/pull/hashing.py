"""A hash thread close behind the writers: it reads what was just written back out of the page cache, so that hashing
and receiving overlap.

sha256 costs more than the transport does; in one thread the two would add up. A blob that fits into a few pieces is
hashed in place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from modelmount.content.journal import Reader
from modelmount.errors import Cancelled
from modelmount.oci.digest import Digest
from modelmount.system import disk

READ_BYTES = 1 << 20
"""What is hashed in one go: waking for less costs more than it brings."""
INLINE_BYTES = 4 << 20
_LOOK_SECONDS = 0.25


class Follower:
    """Hashes a file from 0 up to where `advance` has allowed. Any thread calls `advance` and `wait_beyond`; one, at the
    end, `finish` or `stop`.
    """

    def __init__(self, read_into: Reader, digest: Digest, size: int) -> None:
        """Small blobs get no thread: `finish` hashes them."""
        self._read_into, self._size, self._hasher = read_into, size, digest.hasher()
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

    @property
    def hashed(self) -> int:
        """Everything below is hashed, and won't be read for that again."""
        return self._position

    def advance(self, limit: int) -> None:
        """Bytes below `limit` are in the file. The farthest word counts."""
        if limit <= self._limit:
            return
        with self._changed:
            self._limit = max(self._limit, limit)
            if self._thread is None or self._limit - self._position >= READ_BYTES or self._limit == self._size:
                self._changed.notify_all()

    @property
    def error(self) -> OSError | None:
        """Why it hashes no more, if a read has failed."""
        return self._error

    def wait_beyond(self, position: int, seconds: float) -> int:
        """How far the file may be read: beyond `position`, or not yet after so many seconds, or never when stopped."""
        with self._changed:
            if self.position <= position and not self._stopped:
                self._changed.wait(seconds)
            return self.position

    def finish(self) -> str:
        """All is written: the hex digest of everything below the last limit. Raises the OSError of a failed read."""
        if self._thread is None:
            self._consume(self._limit, disk.buffer(min(READ_BYTES, self._limit)))
        else:
            with self._changed:
                self._end = True
                self._changed.notify_all()
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._hasher.hexdigest()

    def stop(self) -> None:
        """Give up; nothing of the file is touched afterwards."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        buffer = disk.buffer(READ_BYTES)
        while True:
            with self._changed:
                while not self._end and not self._stopped and not self._is_worth_it():
                    self._changed.wait()
                limit = self._limit
                if self._stopped or (self._end and limit <= self._position):
                    return
            try:
                self._consume(limit, buffer)
            except OSError as e:
                self._error = e
                return

    def _is_worth_it(self) -> bool:
        waiting = self._limit - self._position
        return waiting >= READ_BYTES or (waiting > 0 and self._limit == self._size)

    def _consume(self, limit: int, buffer: memoryview) -> None:
        while self._position < limit and not self._stopped:
            count = self._read_into(buffer[: limit - self._position], self._position)
            if not count:
                raise OSError(5, "the download shrank while it was hashed")
            self._hasher.update(buffer[:count])
            with self._changed:
                self._position += count
                self._changed.notify_all()


class Behind:
    """The file as an archive to unpack, never farther than its hasher came; for one reader (`isolated.Stream`)."""

    def __init__(self, path: Path, size: int, follower: Follower, cancelled: Callable[[], bool]) -> None:
        """At the blob's beginning. Raises OSError."""
        self._file = path.open("rb", buffering=0)
        self._size, self._follower, self._cancelled = size, follower, cancelled
        self._position = 0

    @property
    def size(self) -> int:
        """All that will be there."""
        return self._size

    @property
    def position(self) -> int:
        """Everything below was read."""
        return self._position

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._file.fileno()

    def limit(self, position: int) -> int:
        """Everything below `position` was read: wait until more is hashed, and up to where. Raises Cancelled."""
        self._position = position
        while True:
            limit = self._follower.wait_beyond(position, _LOOK_SECONDS)
            if self._cancelled():
                raise Cancelled("the pull was stopped; its bytes are kept")
            if limit > position:
                return limit

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._file.close()
