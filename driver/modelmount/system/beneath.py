"""Opening below a directory without ever following a symbolic link or leaving the directory."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import struct
from collections.abc import Sequence
from typing import Final

from modelmount.system import syscalls

_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_directory(dir_fd: int | None, parts: Sequence[str], flags: int, *, openat2: bool) -> int:
    """Open the directory `parts` below `dir_fd` (None: below `/`) with `flags` (O_DIRECTORY and O_CLOEXEC are added);
    no parts: `dir_fd` itself, anew.

    Parts are plain names, checked by the caller: no `/`, `.`, `..`, NUL. Raises OSError: ELOOP where a component, the
    last included, is a symbolic link; ENOENT missing; ENOTDIR a component is no directory. Mount points on the way are
    crossed. One openat2 (man 2 openat2, Linux 5.6), or without it one openat per part, each relative to the one before,
    which is as safe and slower.
    """
    if openat2:
        name = "/".join(parts)
        how = _how(flags, absolute=dir_fd is None)
        if dir_fd is None:
            return syscalls.call("openat2", syscalls.AT_FDCWD, os.fsencode("/" + name), how, len(how))
        return syscalls.call("openat2", dir_fd, os.fsencode(name or "."), how, len(how))
    if dir_fd is not None:
        return _walk(dir_fd, parts, flags)
    slash = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _walk(slash, parts, flags)
    finally:
        os.close(slash)


@functools.cache
def _how(flags: int, *, absolute: bool) -> ctypes.Array[ctypes.c_char]:
    # struct open_how, which the kernel only reads. RESOLVE_BENEATH refuses absolute paths, and below `/` itself,
    # without links and `..`, it has nothing to forbid.
    resolve = _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS | (0 if absolute else _RESOLVE_BENEATH)
    return ctypes.create_string_buffer(struct.pack("=3Q", flags | os.O_DIRECTORY | os.O_CLOEXEC, 0, resolve), 24)


def _walk(dir_fd: int, parts: Sequence[str], flags: int) -> int:
    fd = os.open(".", _STEP, dir_fd=dir_fd)
    try:
        for part in parts:
            following = _step(fd, part)
            os.close(fd)
            fd = following
        # Opened anew from itself, so that the last step too is made by name only once.
        return os.open(".", flags | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)


def _step(fd: int, part: str) -> int:
    try:
        return os.open(part, _STEP, dir_fd=fd)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), part) from None
        raise
