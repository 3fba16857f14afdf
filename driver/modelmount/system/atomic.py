"""Durable writes in the order that survives a power cut: write, fsync, rename, fsync the directory.

A failed fsync is never repeated on the same file: the kernel reports a write-back error once and then calls the lost
pages clean, so the second fsync would lie (man 2 fsync). Whoever gets an OSError from here throws the half-made thing
away.
"""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from modelmount.system import disk, host, mountinfo, syscalls
from modelmount.system.failpoints import armed, failpoint

__all__ = [
    "AGELESS",
    "GroupSync",
    "armed",
    "creating_file",
    "failpoint",
    "fsync_directory",
    "fsync_file",
    "read_file",
    "rename_noreplace",
    "seal",
    "seal_beneath",
    "settle_file",
    "sync_tree",
    "syncs_groups",
    "temporary_beside",
    "write_file",
]

AGELESS: Final = 315532800
"""1980-01-01 00:00:00 UTC, in seconds: the time that every file of a model shows. Zip archives know none before."""
_RENAME_NOREPLACE: Final = 1
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SMALL_BYTES: Final = 64 << 10
_SYNCFS_REPORTS_ERRORS: Final = (5, 8)
_NAMES_FOLLOW_FILES: Final = frozenset({"ext4", "xfs"})
"""File systems whose fsync of a file commits the rename that gave it its name, too: the rename changes the inode within
the same transaction, and ext4 without a journal syncs the directory along (fs/ext4/fsync.c, ext4_sync_parent). man 2
fsync promises it of none; tests/unit/system/test_power_cut.py holds these to it.
"""


def write_file(path: str | Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` so that after any crash it holds either the old content, whole, or the new, whole and
    durable on return.

    The umask plays no part in `mode`. Two writers may race; one of the contents wins. An OSError before the rename
    leaves the old file and no temporary one; an OSError from the last step (the directory's fsync) leaves the new
    content visible but perhaps not durable.
    """
    temporary, fd = _open_temporary(path)
    try:
        try:
            _write_all(fd, data)
            os.fchmod(fd, mode)
            failpoint("atomic.write_file.before_fsync")
            os.fsync(fd)
        finally:
            os.close(fd)
        failpoint("atomic.write_file.before_rename")
        os.rename(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    failpoint("atomic.write_file.before_directory_fsync")
    fsync_directory(os.path.dirname(temporary))


@contextmanager
def creating_file(path: str | Path, data: bytes) -> Iterator[None]:
    """Put a new file of mode 0600 at `path`, whole for whoever looks, at the beginning of the block; it is durable with
    its name at the end. The disk works meanwhile.

    One fsync where that is enough (`_NAMES_FOLLOW_FILES`), half the time of `write_file`. The price: a power cut before
    the end may leave something torn at `path`, so it is for records whose readers take what they can't decode for
    absent. Nothing may be there before, for that would be lost. After an OSError of the beginning nothing is there;
    after one of the block or of the end the file is, and isn't durable: the caller's to remove.
    """
    temporary, fd = _open_temporary(path)
    directory = os.path.dirname(temporary)
    try:
        try:
            _write_all(fd, data)
            disk.sync_range(fd, 0, 0)
            failpoint("atomic.creating_file.before_rename")
            os.rename(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        yield
        failpoint("atomic.creating_file.before_fsync")
        os.fsync(fd)
    finally:
        os.close(fd)
    _sync_name(directory)


def settle_file(path: str | Path) -> None:
    """Make an existing file and its name durable, where a killed process may not have come to do it itself."""
    _fsync(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    _sync_name(os.path.dirname(os.path.abspath(path)))


def read_file(path: str | Path) -> bytes:
    """The whole content of a small file. Raises OSError. A third of the system calls of `Path.read_bytes`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, _SMALL_BYTES)
        if len(data) < _SMALL_BYTES:
            return data
        pieces = [data]
        while piece := os.read(fd, _SMALL_BYTES):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def temporary_beside(path: Path) -> Path:
    """A fresh name for something half-made that will be renamed to `path`: `.<name>.<random>` in the same directory,
    hence the same file system.
    """
    return path.parent / f".{path.name}.{secrets.token_hex(8)}"


def rename_noreplace(source: str | Path, destination: str | Path) -> None:
    """Rename a file or directory; raises FileExistsError, in one step with the test, where `destination` exists (even
    an empty directory).

    man 2 renameat2, RENAME_NOREPLACE. Nothing is synced: the caller fsyncs both parent directories. A file system
    without support answers EINVAL.
    """
    syscalls.call(
        "renameat2",
        syscalls.AT_FDCWD,
        os.fsencode(source),
        syscalls.AT_FDCWD,
        os.fsencode(destination),
        _RENAME_NOREPLACE,
    )


def seal(fd: int) -> None:
    """Make a file as every file of a model is, wherever it came from: for all to read, of one and the same age. Before
    the fsync, which makes that durable too.
    """
    os.fchmod(fd, 0o444)  # whatever the umask
    os.utime(fd, (AGELESS, AGELESS))


def seal_beneath(directory: int, name: str) -> None:
    """`seal` by name below a directory's descriptor."""
    os.chmod(name, 0o444, dir_fd=directory)
    os.utime(name, (AGELESS, AGELESS), dir_fd=directory, follow_symlinks=False)


def fsync_file(path: str | Path) -> None:
    """Make the content of an existing regular file durable. Its name is durable only after `fsync_directory` of its
    parent.
    """
    _fsync(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def fsync_directory(path: str | Path) -> None:
    """Make the names in `path` durable: creations, renames, links and removals that returned before this call."""
    _fsync(path, _DIRECTORY)


def sync_tree(path: Path, *, files: bool = True) -> None:
    """fsync everything below the directory `path` and itself, bottom-up, never following symbolic links.

    `files=False` leaves the regular files out: right where they are hard links to content that is durable already. The
    name of `path` in its own parent isn't covered. One fsync per file (0.2 ms each on a fast disk): for many small new
    files use `GroupSync`.
    """
    for directory, _, names in os.walk(path, topdown=False, onerror=_raise):
        if files:
            for name in names:
                file = Path(directory, name)
                if file.is_file() and not file.is_symlink():
                    fsync_file(file)
        fsync_directory(Path(directory))


def syncs_groups() -> bool:
    """Whether this kernel reports the errors of a group's sync, so that one is as good as one fsync each."""
    return host.kernel_version() >= _SYNCFS_REPORTS_ERRORS


class GroupSync:
    """One sync for many small files: open it before the first of them is written, call `sync` after the last, rename
    only then.

    A context manager, used by one thread. It flushes the whole file system, so it pays from about ten files on. The
    order matters: syncfs reports only errors since its descriptor was opened, and each error to whoever looks first
    (man 2 syncfs, "VERSIONS"). Kernels before 5.8 report none, so there each file gets its own fsync.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = os.open(directory, _DIRECTORY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """For whoever doesn't use it as a context manager. Twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def sync(self, files: Iterable[str | Path]) -> None:
        """Make the content of `files` and the names in the directory durable. An OSError condemns the whole group."""
        failpoint("atomic.group_sync.before_sync")
        if syncs_groups():
            syscalls.syncfs(self._fd)
            return
        for file in files:
            fsync_file(file)
        os.fsync(self._fd)


def _open_temporary(path: str | Path) -> tuple[str, int]:
    directory, name = os.path.split(os.path.abspath(path))
    temporary = f"{directory}/.{name}.{secrets.token_hex(8)}"
    return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _sync_name(directory: str) -> None:
    if not _names_follow_files(os.stat(directory).st_dev, directory):
        fsync_directory(directory)


@functools.cache
def _names_follow_files(device: int, directory: str) -> bool:
    """Whether the fsync of a file makes its last rename durable here. `device` is that of `directory`, so that another
    file system in the same place is looked at anew.
    """
    entry = mountinfo.mount_of(Path(directory))
    return entry is not None and entry.fstype in _NAMES_FOLLOW_FILES and device == os.makedev(*entry.device)


def _fsync(path: str | Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _raise(error: OSError) -> None:
    # os.walk swallows errors by default; an unreadable directory would count as synced.
    raise error
