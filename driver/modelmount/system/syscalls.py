"""The door to libc: numbered system calls without a wrapper in Python, and mount(2), umount2(2), syncfs(2),
prctl(2), sync_file_range(2).

`ctypes.CDLL` releases the GIL around each call and keeps errno per thread, so every function here may be used from any
thread at the same time. Failures are raised as the `OSError` subclass of their errno.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
from collections.abc import Callable, Mapping
from typing import Final

NUMBERS: Final[Mapping[str, Mapping[str, int]]] = {
    "x86_64": {
        "renameat2": 316,
        "statx": 332,
        "open_tree": 428,
        "move_mount": 429,
        "openat2": 437,
        "mount_setattr": 442,
        "landlock_create_ruleset": 444,
        "landlock_add_rule": 445,
        "landlock_restrict_self": 446,
        "capget": 125,
        "capset": 126,
    },
    "aarch64": {
        "renameat2": 276,
        "statx": 291,
        "open_tree": 428,
        "move_mount": 429,
        "openat2": 437,
        "mount_setattr": 442,
        "landlock_create_ruleset": 444,
        "landlock_add_rule": 445,
        "landlock_restrict_self": 446,
        "capget": 90,
        "capset": 91,
    },
}
"""System call numbers by machine. Source: Linux `arch/x86/entry/syscalls/syscall_64.tbl` and
`include/uapi/asm-generic/unistd.h` (aarch64).
"""

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000

Buffer = ctypes.Array[ctypes.c_char]
Argument = int | bytes | Buffer | None
"""What a call takes: a number, a NUL-terminated path, a buffer, or a null pointer."""

_number, _path, _buffer = ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p
_ARGUMENTS: Final = {
    "renameat2": (_number, _path, _number, _path, _number),
    "statx": (_number, _path, _number, _number, _buffer),
    "open_tree": (_number, _path, _number),
    "move_mount": (_number, _path, _number, _path, _number),
    "openat2": (_number, _path, _buffer, _number),
    "mount_setattr": (_number, _path, _number, _buffer, _number),
    "landlock_create_ruleset": (_buffer, _number, _number),
    "landlock_add_rule": (_number, _number, _buffer, _number),
    "landlock_restrict_self": (_number, _number),
    "capget": (_buffer, _buffer),
    "capset": (_buffer, _buffer),
}
# Each call is declared, since syscall(2) is variadic: an int passed to it bare would be cut to 32 bits.

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def _door(number: int, arguments: tuple[type, ...]) -> Callable[..., int]:
    function = _libc["syscall"]  # by index: each time a function object of its own, with a declaration of its own
    function.restype = ctypes.c_long
    function.argtypes = (ctypes.c_long, *arguments)
    return functools.partial(function, number)


_doors = {name: _door(number, _ARGUMENTS[name]) for name, number in NUMBERS.get(platform.machine(), {}).items()}


def call(name: str, *arguments: Argument) -> int:
    """Make the numbered system call `name`. A machine without a row in `NUMBERS` answers ENOSYS, as a kernel without
    the call does.
    """
    door = _doors.get(name)
    if door is None:
        raise _error(errno.ENOSYS, name)
    for argument in arguments:
        if argument.__class__ is bytes:
            _terminated(argument)
    result = door(*arguments)
    if result < 0:
        raise _error(ctypes.get_errno(), name)
    return result


def buffer(data: bytes) -> Buffer:
    """These bytes as a structure for a call, without a NUL behind them."""
    return ctypes.create_string_buffer(data, len(data))


def mount(source: bytes | None, target: bytes, fstype: bytes | None, flags: int, data: bytes | None = None) -> None:
    """man 2 mount."""
    if _libc.mount(source, _terminated(target), fstype, flags, data) < 0:
        raise _error(ctypes.get_errno(), "mount")


def umount2(target: bytes, flags: int) -> None:
    """man 2 umount."""
    if _libc.umount2(_terminated(target), flags) < 0:
        raise _error(ctypes.get_errno(), "umount2")


def syncfs(fd: int) -> None:
    """man 2 syncfs. Since Linux 5.8 it reports write-back errors of the whole file system that happened after `fd` was
    opened.
    """
    if _libc.syncfs(fd) < 0:
        raise _error(ctypes.get_errno(), "syncfs")


def prctl(option: int, *arguments: int) -> int:
    """man 2 prctl. An argument may be the address of a buffer that lives until the call returns."""
    result: int = _libc.prctl(option, *arguments, *[0] * (4 - len(arguments)))
    if result < 0:
        raise _error(ctypes.get_errno(), "prctl")
    return result


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """man 2 sync_file_range."""
    if _libc.sync_file_range(fd, offset, length, flags) < 0:
        raise _error(ctypes.get_errno(), "sync_file_range")


def _terminated(path: bytes) -> bytes:
    # C would silently stop at the NUL and act on a shorter path.
    if b"\0" in path:
        raise ValueError("a path must not contain a NUL byte")
    return path


def _error(code: int, name: str) -> OSError:
    return OSError(code, f"{os.strerror(code)} [{name}]")
