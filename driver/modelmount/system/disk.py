"""Space and page cache of the store's file system."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from modelmount.system import syscalls

WRITE_BYTES: Final = 128 << 10
"""The most that is written at once: larger writes make the page cache take larger pages, far slower on virtual machines
that return free memory to their host (measured; see docs/design/0001).
"""
_BLOCK_BYTES: Final = 512  # unit of st_blocks on Linux, whatever the file system's block size (man 3type stat)
_SYNC_FILE_RANGE_WRITE: Final = 2
_SYNC_FILE_RANGE_WAIT_BEFORE_WRITE_WAIT_AFTER: Final = 7


def free_bytes(path: Path | int) -> int:
    """Bytes an ordinary process may still write on the file system of `path` (f_bavail: blocks reserved for root don't
    count).

    A snapshot: others write at the same time, and a file system after an error still reports free space.
    """
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize


def free_inodes(path: Path | int) -> int | None:
    """Files that may still be created on the file system of `path`; None where it has no fixed number (btrfs)."""
    figures = os.statvfs(path)
    return figures.f_favail if figures.f_files else None


class Footprint(NamedTuple):
    """What something takes of its file system."""

    bytes: int
    inodes: int


def footprint(path: str | Path) -> Footprint:
    """Bytes and inodes on disk of a file, or of everything at and below a directory, each inode once; what is missing
    counts 0.

    Holes don't count. Symbolic links aren't followed.
    """
    seen: set[tuple[int, int]] = set()
    total = _blocks(path, seen)
    if not seen:
        return Footprint(0, 0)
    for directory, directories, files in os.walk(path):
        total += sum(_blocks(Path(directory, name), seen) for name in (*directories, *files))
    return Footprint(total * _BLOCK_BYTES, len(seen))


def visible(directory: Path) -> list[Path]:
    """What is in a directory, but for what is half-made and has a dot in front; nothing where there is none. Raises
    OSError.
    """
    try:
        return [directory / name for name in os.listdir(directory) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def exclusive_bytes(paths: Iterable[str | Path]) -> int:
    """The bytes on disk of everything at and below these paths that has no name elsewhere: what their end would free.
    What is missing counts 0.
    """
    names: Counter[tuple[int, int]] = Counter()
    found: dict[tuple[int, int], os.stat_result] = {}
    for path in paths:
        below = ((directory, name) for directory, *kinds in os.walk(path) for kind in kinds for name in kind)
        for each in (path, *(os.path.join(directory, name) for directory, name in below)):
            try:
                status = os.lstat(each)
            except FileNotFoundError:
                continue
            inode = (status.st_dev, status.st_ino)
            names[inode] += 1
            found[inode] = status
    own = (s for inode, s in found.items() if stat.S_ISDIR(s.st_mode) or s.st_nlink <= names[inode])
    return sum(status.st_blocks for status in own) * _BLOCK_BYTES


def allocated_bytes(path: str | Path) -> int:
    """The bytes of its footprint."""
    return footprint(path).bytes


def read_past_cache(path: Path, buffer: mmap.mmap) -> Iterator[memoryview]:
    """The content of a regular file in pieces of at most the buffer, read from the disk itself: what is cached stays
    cached, and nothing is added (O_DIRECT). A file system without that reads as usual.

    Each piece is overwritten by the next. `buffer` is an anonymous mapping of whole pages. Raises OSError.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        fd = os.open(path, flags)
    try:
        offset = 0
        with memoryview(buffer) as view:
            while count := _read_at(fd, buffer, offset):
                with view[:count] as piece:
                    yield piece
                offset += count
                if count < len(buffer):
                    return
    finally:
        os.close(fd)


def _read_at(fd: int, buffer: mmap.mmap, offset: int) -> int:
    try:
        return os.preadv(fd, [buffer], offset)
    except OSError as e:
        status = fcntl.fcntl(fd, fcntl.F_GETFL)
        if e.errno != errno.EINVAL or not status & os.O_DIRECT:
            raise
        fcntl.fcntl(fd, fcntl.F_SETFL, status & ~os.O_DIRECT)
        return os.preadv(fd, [buffer], offset)


def buffer(count: int) -> memoryview:
    """So many bytes to receive and read into, at the beginning of a page.

    What the kernel copies lies in pages too, and some processors copy several times slower where the two differ by a
    few bytes: AMD's `rep movsb` 1.6 GiB/s instead of 11 for 16, which is just where malloc, hence bytearray, puts large
    blocks.
    """
    return memoryview(mmap.mmap(-1, max(1, count)))[:count]


def write_at(fd: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at `offset`, in pieces of at most WRITE_BYTES. Raises OSError; how much is there nobody knows
    then.
    """
    while view:
        count = os.pwrite(fd, view[:WRITE_BYTES], offset)
        view, offset = view[count:], offset + count


def sync_range(fd: int, offset: int, length: int, *, wait: bool = False) -> None:
    """Start writing the dirty pages of a range to disk now, so that a later fdatasync has little left; with `wait`,
    also until they are out.

    Makes nothing durable by itself (man 2 sync_file_range, "Warning"). An error condemns the file like a failed fsync;
    a kernel or sandbox without the call is ignored.
    """
    flags = _SYNC_FILE_RANGE_WAIT_BEFORE_WRITE_WAIT_AFTER if wait else _SYNC_FILE_RANGE_WRITE
    try:
        syscalls.sync_file_range(fd, offset, length, flags)
    except OSError as e:
        if e.errno not in {errno.ENOSYS, errno.EPERM}:
            raise


def drop_cache(fd: int, offset: int = 0, length: int = 0) -> None:
    """Ask the kernel to drop the clean cached pages of a range (length 0: to the end). Dirty pages stay, so sync first.
    A hint.
    """
    os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def _blocks(path: str | Path, seen: set[tuple[int, int]]) -> int:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    inode = (status.st_dev, status.st_ino)
    if inode in seen:
        return 0
    seen.add(inode)
    return status.st_blocks


def sealed(data: bytes) -> int:
    """A descriptor of a file in memory that holds `data`, which nobody can change any more (man 2 memfd_create)."""
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        write_at(fd, memoryview(data), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd
