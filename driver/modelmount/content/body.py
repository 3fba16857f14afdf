"""Where the bytes of a download lie while it is under way: as one file, or wherever else a `Body` puts them.

A body knows nothing of what was written and what is missing; that is the ingest's business. What it promises is that
the bytes at an offset are read back as they were written there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from modelmount.content.ranges import Range
from modelmount.system import atomic, disk
from modelmount.system.atomic import GroupSync


class Body(Protocol):
    """The bytes of one blob by their offset in it. Any number of threads, each at bytes that no other one writes.

    Everything raises OSError; `write` and `resume` what the bytes deserve, too.
    """

    @property
    def front(self) -> int:
        """Who begins to write here or before may go on for as long as nothing is left out; what lies farther behind has
        no place yet. Never decreases, and is the blob's size when everything has its place.
        """
        ...

    def resume(self, written: Sequence[Range]) -> None:
        """Called once, before the first write: what is known to be there from an earlier attempt."""
        ...

    def write(self, view: memoryview, offset: int) -> None:
        """Put all of `view` at `offset`. When it raises, nobody knows how much of it is there."""
        ...

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill the head of `view` with bytes from `offset` on; how many, 0 where there are none."""
        ...

    def start_writeback(self, offset: int, length: int) -> None:
        """These bytes may go to the disk now."""
        ...

    def sync(self, group: GroupSync | None) -> None:
        """Make all that was written durable, and the names of its files below the body's own directory. `group` was
        opened before the first write.
        """
        ...

    def close(self) -> None:
        """Let go of all files. Twice is harmless."""
        ...


class FileBody:
    """One file; every byte at its own offset."""

    def __init__(self, fd: int, path: Path, size: int) -> None:
        """Made by `open`."""
        self._fd, self._size = fd, size
        self.path = path

    @classmethod
    def open(cls, path: Path, size: int) -> Self:
        """Open or create the file."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return cls(os.open(path, flags, 0o600), path, size)

    @property
    def front(self) -> int:
        """Everything has its place."""
        return self._size

    def resume(self, written: Sequence[Range]) -> None:
        """Nothing is left of what isn't believed behind the last byte that is."""
        os.ftruncate(self._fd, written[-1][1] if written else 0)

    def write(self, view: memoryview, offset: int) -> None:
        """See Body."""
        disk.write_at(self._fd, view, offset)

    def read_into(self, view: memoryview, offset: int) -> int:
        """See Body."""
        return os.preadv(self._fd, [view], offset)

    def start_writeback(self, offset: int, length: int) -> None:
        """See Body."""
        disk.sync_range(self._fd, offset, length)

    def sync(self, group: GroupSync | None) -> None:
        """One file is cheaper synced by itself."""
        os.fdatasync(self._fd)

    @property
    def length(self) -> int:
        """How long the file is."""
        return os.fstat(self._fd).st_size

    def seal(self) -> None:
        """Make the file read-only and durable."""
        atomic.seal(self._fd)
        os.fsync(self._fd)

    def close(self) -> None:
        """See Body."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
