"""The files of a layer that is being filled, by descriptor: many members, few of them open at a time."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

OPEN_FILES: Final = 32
"""Members that are kept open: more than connections write at a time."""
FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class OpenFile:
    """A descriptor, closed when nobody has it any more: one thread may use what another put out of the list."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        """Owns `fd` from now on."""
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Files:
    """The layer's files by descriptor: `rest`, and the members that were used last. Thread-safe."""

    def __init__(self) -> None:
        """None is open yet."""
        self.rest = self.directory = -1
        self._lock = threading.Lock()
        self._members: OrderedDict[int, OpenFile] = OrderedDict()

    def open(self, layer: Path) -> None:
        """`rest` is made if it isn't there."""
        self.directory = os.open(layer / "files", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.rest = os.open(layer / "rest", FLAGS | os.O_CREAT, 0o600)

    def close(self) -> None:
        """All of them. Twice is harmless."""
        with self._lock:
            self._members.clear()
        for fd in (self.rest, self.directory):
            if fd >= 0:
                os.close(fd)
        self.rest = self.directory = -1

    def known(self, number: int) -> OpenFile | None:
        """The member's, if it is open."""
        with self._lock:
            found = self._members.get(number)
            if found is not None:
                self._members.move_to_end(number)
            return found

    def member(self, number: int, flags: int = 0) -> OpenFile:
        """The member's, opened with these flags too. It stays open for as long as the caller has it."""
        if (known := self.known(number)) is not None:
            return known
        made = OpenFile(os.open(str(number), FLAGS | flags, 0o600, dir_fd=self.directory))
        with self._lock:
            found = self._members.setdefault(number, made)
            self._members.move_to_end(number)
            while len(self._members) > OPEN_FILES:
                self._members.popitem(last=False)
        return found
