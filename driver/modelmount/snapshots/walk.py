"""From header to header through an uncompressed tar whose bytes may lie anywhere: what its members are and where."""

from __future__ import annotations

from typing import Final

from modelmount.content.journal import Reader
from modelmount.formats import paths
from modelmount.formats.base import Member
from modelmount.snapshots import tarstream, unpack

_READ_BYTES: Final = 64 << 10


class Walk:
    """From header to header through an archive of `size` bytes. Raises BadArtifact as `unpack.unpack` does."""

    def __init__(self, size: int, limits: unpack.Limits, *, rootfs: bool) -> None:
        """At the archive's beginning."""
        self.position = 0
        """Where the next wanted byte is."""
        self._size, self._limits = size, limits
        self._headers = tarstream.Headers(limits.entries, rootfs=rootfs)
        self._block = b""
        self._total = 0

    @property
    def wanted(self) -> int:
        """How many bytes `take` wants at most."""
        left = self._size - self.position
        return left if self._headers.ended else min(tarstream.BLOCK_BYTES - len(self._block), left)

    def take(self, data: memoryview) -> Member | None:
        """The bytes from `position` on; the member that they complete the header of. Where they are refused, `position`
        is their end.
        """
        self.position += len(data)
        if self._headers.ended:
            self._headers.feed_end(data)
            return None
        self._block += data
        if len(self._block) < tarstream.BLOCK_BYTES:
            return None
        block, self._block = self._block, b""
        entry = self._headers.feed(block)
        if entry is None:
            return None
        self._total += entry.size
        if self._total > self._limits.bytes:
            raise unpack.too_large(self._limits, f"with {paths.show(entry.path)} ")
        member = Member(self.position, entry.path, entry.is_directory, entry.size, "", entry.special, entry.target)
        following = self.position + entry.size + -entry.size % tarstream.BLOCK_BYTES
        if following > self._size:
            raise tarstream.cut_off()
        self.position = following
        return member

    def finish(self) -> None:
        """The archive's end."""
        if self._block:
            raise tarstream.cut_off()
        self._headers.finish()


def members(read_into: Reader, walk: Walk) -> list[Member]:
    """Walk to the end of the archive that `read_into` reads."""
    found = []
    buffer = memoryview(bytearray(_READ_BYTES))
    while walk.wanted:
        count = read_into(buffer[: walk.wanted], walk.position)
        if not count:
            raise OSError(5, "the headers of an archive shrank")
        member = walk.take(buffer[:count])
        if member is not None:
            found.append(member)
    walk.finish()
    return found
