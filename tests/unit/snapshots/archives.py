"""A driver that unpacks archives, and a neighbour that must not change."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelmount.formats.base import Encoding, Member
from modelmount.oci.digest import Digest
from modelmount.snapshots import unpack, walk

LIMITS = unpack.Limits(bytes=16 << 20, entries=1000)


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """A descriptor of a directory to unpack into."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def headers_of(data: bytes, limits: unpack.Limits = LIMITS, *, rootfs: bool = False) -> list[Member]:
    """The members of an uncompressed archive, read in this process."""

    def read_into(view: memoryview, offset: int) -> int:
        part = data[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)

    return walk.members(read_into, walk.Walk(len(data), limits, rootfs=rootfs))


class Directory:
    """Where one archive is unpacked, with a neighbour that must not change."""

    def __init__(self, path: Path) -> None:
        self.files = path / "parent" / "files"
        self.files.mkdir(parents=True)
        self.victim = path / "parent" / "victim"
        self.victim.write_bytes(b"untouched")

    def unpack(
        self,
        data: bytes | io.RawIOBase,
        encoding: Encoding = Encoding.TAR,
        limits: unpack.Limits = LIMITS,
        cancelled: Callable[[], bool] = lambda: False,
        uncompressed: Digest | None = None,
    ) -> list[Member]:
        """Unpack bytes that are as `encoding` says."""
        stream = io.BytesIO(data) if isinstance(data, bytes) else data
        with opened(self.files) as files:
            return unpack.unpack(stream, encoding, files, limits, cancelled, uncompressed=uncompressed)

    def contents(self, members: list[Member]) -> dict[str, bytes | None]:
        """Path to bytes, None for directories."""
        return {m.path: None if m.is_directory else (self.files / str(m.number)).read_bytes() for m in members}

    def names(self) -> set[str]:
        """What lies in the directory."""
        return {path.name for path in self.files.iterdir()}

    def is_contained(self) -> bool:
        """Nothing but plain files named by numbers appeared, and only where they may."""
        inside = all(path.name.isdigit() and path.is_file() and not path.is_symlink() for path in self.files.iterdir())
        outside = {path.name for path in self.files.parent.iterdir()}
        return inside and outside == {"files", "victim"} and self.victim.read_bytes() == b"untouched"
