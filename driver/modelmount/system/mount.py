"""Read-only bind mounts, and what is mounted where.

A mount is made detached, set read-only, then attached (open_tree, mount_setattr, move_mount: Linux 5.12). The older
order, bind and then remount read-only, has two faults: the target is writable in between, and the remount does not
propagate, so that the host's copy of the mount stays writable for ever. Where the new calls are missing, the bind is
therefore made read-only on a private staging mount and bound from there: flags are copied at the bind and do propagate.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from modelmount.system import syscalls
from modelmount.system.failpoints import failpoint
from modelmount.system.mountinfo import MountEntry, mountinfo, parse_mountinfo

__all__ = [
    "FLAGS",
    "Capabilities",
    "Identity",
    "MountEntry",
    "clone_readonly",
    "identity",
    "is_mount_root",
    "mountinfo",
    "parse_mountinfo",
    "probe",
    "unmount",
]

FLAGS: Final = {"nosuid": 2, "nodev": 4, "noexec": 8}
"""What may be asked for on top of `ro`. MS_*, MOUNT_ATTR_* and ST_* have the same bits for these (linux/mount.h, man 3
statvfs).
"""

_RDONLY: Final = 1
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4096
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000
_STATX_BYTES: Final = 256
_O_DIRECTORY_ITSELF: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Which calls this kernel, and a sandbox that may hide some, let this process use.

    `detached_mounts`: open_tree and mount_setattr (5.12). `mount_root_attribute`: statx tells mount roots (5.8).
    `openat2`: 5.6. `problem` says why `detached_mounts` is false, else it is empty; EPERM there usually means that
    CAP_SYS_ADMIN is missing, and then nothing can be mounted at all.
    """

    detached_mounts: bool
    mount_root_attribute: bool
    openat2: bool
    problem: str


class Identity(NamedTuple):
    """Device and inode number: equal for a directory and every bind of it. Believed within one boot only."""

    device: int
    inode: int


@functools.cache
def probe() -> Capabilities:
    """Try each call once, on `/` and without attaching anything; the answer is remembered for the process's life."""
    problem = ""
    try:
        os.close(_detached_clone(os.open("/", _O_DIRECTORY_ITSELF), _RDONLY, close_source=True))
    except OSError as e:
        problem = f"{errno.errorcode.get(e.errno or 0, e.errno)}: {e.strerror}"
    try:
        _, mask = _statx_attributes(syscalls.AT_FDCWD, b"/")
    except OSError:
        mask = 0
    return Capabilities(
        detached_mounts=not problem,
        mount_root_attribute=bool(mask & _STATX_ATTR_MOUNT_ROOT),
        openat2=_has_openat2(),
        problem=problem,
    )


def clone_readonly(
    source: Path,
    target: Path | int,
    flags: frozenset[str],
    *,
    capabilities: Capabilities | None = None,
    staging: Path | None = None,
) -> None:
    """Bind the directory `source` onto the directory `target`, read-only from the instant it appears, here and wherever
    it propagates.

    `flags` out of `FLAGS` are added; what the source's own mount forbids stays forbidden. `target` is a path whose last
    component is no symlink, or better an O_PATH descriptor, which no rename can divert; the descriptor stays the
    caller's. Mounts below `source` don't come along, and later ones cross neither way. A target that is a mount already
    gets one **on top**: test first, under a lock. All or nothing: an OSError leaves no mount, though a kill inside the
    fallback can leave a private tmpfs in `staging` (default: the temporary directory).
    """
    unknown = flags - FLAGS.keys()
    if unknown:
        raise ValueError(f"unknown mount flags {sorted(unknown)}; known are {sorted(FLAGS)}")
    bits = _RDONLY | sum(FLAGS[flag] for flag in flags)
    with _descriptor(source) as source_fd, _descriptor(target) as target_fd:
        if (capabilities or probe()).detached_mounts:
            _attach_detached(source_fd, target_fd, bits)
        else:
            _attach_staged(source_fd, target_fd, bits, staging)


def unmount(path: Path | str, *, dir_fd: int | None = None) -> int:
    """Remove every mount stacked on `path`; answers how many there were. Nothing there, or no such path, is 0.

    A busy mount is detached: open files live on, the name is free at once. With `dir_fd`, `path` is one name in that
    directory: the way to act below directories that others can change. The last component is never followed. Close own
    descriptors inside the mount first.
    """
    target = _proc_path(path, dir_fd)
    count = 0
    while is_mount_root(path, dir_fd=dir_fd):
        try:
            _unmount_top(target)
        except OSError as e:
            # Not a mount any more, or gone: somebody else was quicker.
            # Still a mount root: the kernel refuses it (a locked mount, `/`).
            if e.errno not in {errno.EINVAL, errno.ENOENT} or is_mount_root(path, dir_fd=dir_fd):
                raise
            break
        count += 1
    return count


def is_mount_root(
    path: Path | str | int, *, dir_fd: int | None = None, capabilities: Capabilities | None = None
) -> bool:
    """Whether `path` (one name in `dir_fd`, or a descriptor) is the root of a mount; false when missing. Answers for
    dead FUSE mounts too.

    One statx, 3 µs. `os.path.ismount` is wrong for binds within one file system. Before Linux 5.8 mountinfo is read.
    """
    if not (capabilities or probe()).mount_root_attribute:
        return _is_mount_point_by_mountinfo(path, dir_fd)
    try:
        if isinstance(path, int):
            attributes, _ = _statx_attributes(path, b"")
        else:
            attributes, _ = _statx_attributes(syscalls.AT_FDCWD if dir_fd is None else dir_fd, os.fsencode(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as e:
        if e.errno != errno.EIO:
            raise
        return _is_mount_point_by_mountinfo(path, dir_fd)  # XFS tells nothing of a disk that is gone
    return bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def identity(path: Path | str | int, *, dir_fd: int | None = None) -> Identity:
    """What `path` is now, the topmost mount counting, symlinks not followed. Raises OSError: ENOENT missing, ENOTCONN
    or ESTALE a dead mount.
    """
    status = os.fstat(path) if isinstance(path, int) else os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    return Identity(status.st_dev, status.st_ino)


def _attach_detached(source_fd: int, target_fd: int, bits: int) -> None:
    tree = _detached_clone(source_fd, bits)
    try:
        failpoint("system.mount.before_attach")
        how = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
        syscalls.call("move_mount", tree, b"", target_fd, b"", how)
    finally:
        os.close(tree)


def _detached_clone(source_fd: int, bits: int, *, close_source: bool = False) -> int:
    try:
        tree = syscalls.call("open_tree", source_fd, b"", _OPEN_TREE_CLONE | os.O_CLOEXEC | syscalls.AT_EMPTY_PATH)
    finally:
        if close_source:
            os.close(source_fd)
    try:
        # struct mount_attr: attr_set, attr_clr, propagation, userns_fd (man 2 mount_setattr). Private, because a clone
        # joins its source's peer group: what one privileged pod mounted below its target would appear in the store and
        # in every other pod's tree.
        attributes = ctypes.create_string_buffer(struct.pack("=4Q", bits, 0, _MS_PRIVATE, 0), 32)
        syscalls.call("mount_setattr", tree, b"", syscalls.AT_EMPTY_PATH, attributes, len(attributes))
    except OSError:
        os.close(tree)
        raise
    return tree


def _attach_staged(source_fd: int, target_fd: int, bits: int, staging: Path | None) -> None:
    stage = tempfile.mkdtemp(prefix="modelmount-stage-", dir=staging)
    try:
        syscalls.mount(b"modelmount", os.fsencode(stage), b"tmpfs", sum(FLAGS.values()), b"mode=0700,size=64k")
        try:
            bind = os.fsencode(stage) + b"/bind"
            # Private before anything is mounted in it: nothing below is to be seen anywhere else.
            syscalls.mount(None, os.fsencode(stage), None, _MS_PRIVATE)
            os.mkdir(bind)
            syscalls.mount(_fd_path(source_fd), bind, None, _MS_BIND)
            syscalls.mount(None, bind, None, _MS_PRIVATE)
            inherited = os.statvfs(bind).f_flag & sum(FLAGS.values())  # a remount would drop them
            syscalls.mount(None, bind, None, _MS_REMOUNT | _MS_BIND | bits | inherited)
            failpoint("system.mount.before_attach")
            syscalls.mount(bind, _fd_path(target_fd), None, _MS_BIND)
        finally:
            syscalls.umount2(os.fsencode(stage), _MNT_DETACH | _UMOUNT_NOFOLLOW)
    finally:
        os.rmdir(stage)


def _unmount_top(target: bytes) -> None:
    try:
        syscalls.umount2(target, _UMOUNT_NOFOLLOW)
    except OSError as e:
        if e.errno != errno.EBUSY:
            raise
        syscalls.umount2(target, _UMOUNT_NOFOLLOW | _MNT_DETACH)


def _statx_attributes(dir_fd: int, path: bytes) -> tuple[int, int]:
    # struct statx: stx_attributes at 8, stx_attributes_mask at 56 (man 2 statx).
    # Mask 0 and DONT_SYNC: no question to a file system that may be dead.
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    how = syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    syscalls.call("statx", dir_fd, path, how | (0 if path else syscalls.AT_EMPTY_PATH), 0, buffer)
    (attributes,) = struct.unpack_from("=Q", buffer, 8)
    (mask,) = struct.unpack_from("=Q", buffer, 56)
    return attributes, mask


def _is_mount_point_by_mountinfo(path: Path | str | int, dir_fd: int | None) -> bool:
    try:
        if isinstance(path, int):
            name = os.readlink(_fd_path(path))
        elif dir_fd is not None:
            name = os.path.join(os.readlink(_fd_path(dir_fd)), os.fsencode(path))
        else:
            name = os.fsencode(Path(os.path.realpath(Path(path).parent), Path(path).name))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return any(entry.mount_point == os.fsdecode(name) for entry in mountinfo())


def _has_openat2() -> bool:
    how = ctypes.create_string_buffer(struct.pack("=3Q", os.O_PATH | os.O_CLOEXEC, 0, 0), 24)
    try:
        os.close(syscalls.call("openat2", syscalls.AT_FDCWD, b"/", how, len(how)))
    except OSError:
        return False
    return True


@contextmanager
def _descriptor(place: Path | int) -> Iterator[int]:
    if isinstance(place, int):
        yield place
        return
    fd = os.open(place, _O_DIRECTORY_ITSELF)
    try:
        yield fd
    finally:
        os.close(fd)


def _proc_path(path: Path | str, dir_fd: int | None) -> bytes:
    name = os.fsencode(path)
    if dir_fd is None:
        return name
    if b"/" in name or name in {b"", b".", b".."}:
        raise ValueError("with dir_fd the path must be one plain name")
    return _fd_path(dir_fd) + b"/" + name


def _fd_path(fd: int) -> bytes:
    # A magic link: it leads to the very object the descriptor is open on, whatever became of its path (man 5 proc).
    return b"/proc/self/fd/%d" % fd
