"""From an archive to its members' bytes: every regular file goes to `files/<ordinal>`, hashed while it is written.

Names out of the archive never become paths here; they are checked, returned, and act when a tree is linked. Nothing is
synced: whoever commits the layer does that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from modelmount.errors import BadArtifact, NoSpace
from modelmount.formats import paths
from modelmount.formats.base import Encoding, Member
from modelmount.oci.digest import Digest
from modelmount.snapshots import decompress, tarstream
from modelmount.system import disk

if TYPE_CHECKING:
    from hashlib import _Hash

RULES: Final = 1
"""Version of the rules. Rises only when the same archive would unpack to other bytes or names."""
_FIRST_VERSION: Final = {
    Encoding.TAR: 0,
    Encoding.TAR_GZIP: 1000,
    Encoding.TAR_ZSTD: 2000,
    Encoding.RAW_GZIP: 3000,
    Encoding.RAW_ZSTD: 4000,
    Encoding.ROOTFS_TAR: 5000,
    Encoding.ROOTFS_TAR_GZIP: 6000,
    Encoding.ROOTFS_TAR_ZSTD: 7000,
}
"""Every encoding has numbers of its own: one manifest may call a blob an archive that another calls a compressed file,
and a blob can be made that is two kinds of archive at once. Neither may find what the other made of it.
"""
WRITEBACK_BYTES: Final = 16 << 20
"""How much of a member may wait in the page cache before the disk is told to start on it."""
FREE_EXPANSION_BYTES: Final = 64 << 20
"""What any archive may become, however small: a handful of zeros is no bomb."""
_FREE_INODES_PERCENT: Final = 5
"""The kubelet evicts pods below this share of free inodes (nodefs.inodesFree)."""


def versions(encoding: Encoding) -> range:
    """The numbers under which layers of this encoding lie or will lie in the store."""
    first = _FIRST_VERSION[encoding]
    return range(first + 1, first + 1000)


def rules(encoding: Encoding) -> int:
    """The number under which `unpack` unpacks this encoding now."""
    return _FIRST_VERSION[encoding] + RULES


@dataclass(frozen=True, slots=True)
class Limits:
    """What one archive may become: bytes of all its files together, and entries.

    `free_bytes` must stay free on the file system, and 5 % of its inodes; 0 means that nothing has to. `expansion` is
    how many times its own size it may become, beyond FREE_EXPANSION_BYTES; 0 means as often as it likes.
    """

    bytes: int
    entries: int
    free_bytes: int = 0
    expansion: int = 0
    is_by_expansion: bool = False
    """Whether `bytes` is what `expansion` leaves."""

    def of(self, size: int) -> Limits:
        """What an archive of this size may become."""
        most = max(FREE_EXPANSION_BYTES, size * self.expansion)
        if not self.expansion or self.bytes <= most:
            return self
        return replace(self, bytes=most, is_by_expansion=True)


def unpack(
    stream: decompress.RawReader,
    encoding: Encoding,
    files: int,
    limits: Limits,
    cancelled: Callable[[], bool],
    *,
    uncompressed: Digest | None = None,
) -> list[Member]:
    """Write every regular file of the archive into the empty directory of the descriptor `files`, named by its index in
    the list that is returned; directories and links have an index and no file. RAW_GZIP and RAW_ZSTD give one member
    with path "".

    One pass, memory constant but for the names. `uncompressed` is the digest that the archive must have after
    decompression. Raises BadArtifact for whatever is malformed, hostile, larger than `limits` or not `uncompressed`;
    Cancelled; NoSpace where `limits.free_bytes` would be touched; OSError of the disk, ENOSPC among them. What was
    written until then stays for the caller to remove.
    """
    directory = _Directory(files, limits)
    with decompress.opened(stream, encoding, cancelled) as pieces:
        hasher = uncompressed.hasher() if uncompressed is not None else None
        source = tarstream.Source(_hashed(pieces, hasher) if hasher is not None else pieces)
        if encoding.is_archive:
            entries = tarstream.entries(source, limits.entries, rootfs=encoding.is_rootfs)
            found = _members(source, entries, directory, limits)
        else:
            found = [_single(source, directory, limits)]
        if uncompressed is not None and hasher is not None and hasher.hexdigest() != uncompressed.hex:
            raise BadArtifact(
                f"it decompresses to {uncompressed.algorithm}:{hasher.hexdigest()}, where its manifest says "
                f"{uncompressed}; push the model again"
            )
        return found


def _members(
    source: tarstream.Source, entries: Iterator[tarstream.Entry], directory: _Directory, limits: Limits
) -> list[Member]:
    members: list[Member] = []
    total = 0
    for entry in entries:
        ordinal = len(members)
        if entry.is_directory or entry.special:
            members.append(Member(ordinal, entry.path, entry.is_directory, 0, "", entry.special, entry.target))
            continue
        total += entry.size
        if total > limits.bytes:
            raise too_large(limits, f"with {paths.show(entry.path)} ")
        _, sha256 = directory.write(ordinal, source.take(entry.size))
        members.append(Member(ordinal, entry.path, False, entry.size, sha256))
    return members


def _single(source: tarstream.Source, directory: _Directory, limits: Limits) -> Member:
    size, sha256 = directory.write(0, _bounded(source, limits))
    return Member(0, "", False, size, sha256)


def _bounded(source: tarstream.Source, limits: Limits) -> Iterator[memoryview]:
    """Everything, unless it is more than the limit allows."""
    left = limits.bytes
    while piece := source.some(decompress.PIECE_BYTES):
        left -= len(piece)
        if left < 0:
            raise too_large(limits, "")
        yield piece


def too_large(limits: Limits, what: str) -> BadArtifact:
    """For an archive that becomes more than it may; `what` begins the sentence."""
    if limits.is_by_expansion:
        return BadArtifact(
            f"{what}it unpacks to more than {limits.bytes} bytes, which is over {limits.expansion} times its size "
            "(limits.expansion); if it isn't a bomb, have the limit raised"
        )
    return BadArtifact(
        f"{what}it unpacks to more than the {limits.bytes} bytes an admin allows (limits.model_bytes); "
        "publish a smaller model or have the limit raised"
    )


def _hashed(pieces: Iterator[bytes], hasher: _Hash) -> Iterator[bytes]:
    for piece in pieces:
        hasher.update(piece)
        yield piece


def require_space(directory: int, limits: Limits) -> None:
    """Raise NoSpace where what must stay free on the file system of this descriptor isn't any more."""
    keep = limits.free_bytes
    if not keep:
        return
    figures = os.statvfs(directory)
    free = figures.f_bavail * figures.f_frsize
    if free < keep:
        raise NoSpace(
            f"unpacking stops with {free} bytes free on the store's file system, of which {keep} must stay "
            "(limits.free_bytes); free space there or add some"
        )
    if figures.f_favail * 100 < figures.f_files * _FREE_INODES_PERCENT:
        raise NoSpace(
            f"unpacking stops with {figures.f_favail} of {figures.f_files} inodes free on the store's file system, "
            f"of which {_FREE_INODES_PERCENT} % must stay; remove files there"
        )


class _Directory:
    """The directory of the members, by descriptor."""

    def __init__(self, fd: int, limits: Limits) -> None:
        self._fd, self._limits = fd, limits

    def write(self, ordinal: int, pieces: Iterable[memoryview]) -> tuple[int, str]:
        """Make the member's file (0444); its size and sha256."""
        require_space(self._fd, self._limits)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(str(ordinal), flags, 0o600, dir_fd=self._fd)
        try:
            hasher = hashlib.sha256()
            size = started = 0
            for piece in pieces:
                _write_all(fd, piece)
                hasher.update(piece)
                size += len(piece)
                if size - started >= WRITEBACK_BYTES:
                    disk.sync_range(fd, started, size - started)
                    started = size
                    require_space(self._fd, self._limits)
            os.fchmod(fd, 0o444)  # whatever the umask
        finally:
            os.close(fd)
        return size, hasher.hexdigest()


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
