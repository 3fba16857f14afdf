"""Landlock: a process gives up everything that has a path, but for making files in one directory at most.

Source: Linux `Documentation/userspace-api/landlock.rst`, `include/uapi/linux/landlock.h`. What was opened before stays
usable.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from modelmount.system import syscalls

WRITE_FILE, MAKE_REG = 1 << 1, 1 << 8

_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_FILE_RIGHTS: Final = ((1, 13), (2, 14), (3, 15), (5, 16))
"""How many rights there are from an ABI on: 13 from the first, then REFER, TRUNCATE and IOCTL_DEV."""
_NETWORK_ABI, _NETWORK_RIGHTS = 4, 0b11
_SCOPE_ABI, _SCOPES = 6, 0b11
"""Abstract unix sockets and signals stay inside."""


def abi() -> int:
    """The version that this kernel has, 0 without Landlock."""
    try:
        return syscalls.call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError:
        return 0


def confine(directory: int | None) -> bool:
    """From now on this thread, and what it starts, may open no file, except that it makes and writes new ones below
    the directory of this descriptor, if there is one. False where the kernel has no Landlock.

    It must have given up new privileges (PR_SET_NO_NEW_PRIVS). There is no way back. Raises OSError.
    """
    version = abi()
    if not version:
        return False
    rights = max(count for since, count in _FILE_RIGHTS if version >= since)
    handled = struct.pack(
        "=QQQ",
        (1 << rights) - 1,
        _NETWORK_RIGHTS if version >= _NETWORK_ABI else 0,
        _SCOPES if version >= _SCOPE_ABI else 0,
    )
    # A kernel takes a longer structure than its own where the rest is zero.
    ruleset = syscalls.call("landlock_create_ruleset", syscalls.buffer(handled), len(handled), 0)
    try:
        if directory is not None:
            rule = struct.pack("=Qi", WRITE_FILE | MAKE_REG, directory)
            syscalls.call("landlock_add_rule", ruleset, _PATH_BENEATH, syscalls.buffer(rule), 0)
        syscalls.call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return True
