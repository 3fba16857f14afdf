"""Capabilities (man 7 capabilities): what of root's rights a process keeps.

They belong to threads, and a new thread has its maker's, so they are given up before there is a second one.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from modelmount.system import host, syscalls

NUMBERS: Final[Mapping[str, int]] = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
}
"""Those that anything of ours keeps (linux/capability.h)."""
WORKERS: Final = frozenset({"CHOWN", "KILL", "SETGID", "SETPCAP", "SETUID"})
"""Of who starts workers: each of those gets a user of its own and a directory that is this user's, loses what could be
given back to it, and is killed by who isn't that user.
"""
DRIVER: Final = WORKERS | {"SYS_ADMIN", "DAC_OVERRIDE"}
"""Of a driver: mounting, and files in directories that nobody may write to, as trees are, or that are a worker's."""

_VERSION_3: Final = 0x20080522
_SETS: Final = struct.Struct("=6I")
"""Effective, permitted, inheritable; the lower 32 bits of each, then the upper."""
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4


def of_the_driver() -> frozenset[str]:
    """What a driver keeps here: where it sees the machine's processes, also looking at their mounts."""
    return DRIVER | {"SYS_PTRACE"} if host.sees_all_processes() else DRIVER


def keep(kept: Iterable[str]) -> None:
    """Give up every capability but these, for this thread, those that it starts, and their programs, for ever. What the
    process lacks already stays so; who isn't root may call this too.

    Raises OSError where the kernel refuses; then some may be gone already.
    """
    kept = frozenset(kept)
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if holds("SETPCAP"):
        bound(kept)
    mask = _permitted() & _mask(kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    syscalls.call("capset", _header(), syscalls.buffer(_SETS.pack(low, low, 0, high, high, 0)))


def bound(kept: Iterable[str]) -> None:
    """No program that is started from here on has more than these, whoever it belongs to. Takes SETPCAP."""
    mask, capability = _mask(kept), 0
    while True:
        try:
            if not mask >> capability & 1:
                syscalls.prctl(_PR_CAPBSET_DROP, capability)
        except OSError as e:
            if e.errno == errno.EINVAL:  # the kernel has no more
                return
            raise
        capability += 1


def holds(capability: str) -> bool:
    """Whether this thread may use it."""
    return bool(_permitted() >> NUMBERS[capability] & 1)


def _mask(kept: Iterable[str]) -> int:
    return sum(1 << NUMBERS[name] for name in set(kept))


def _permitted() -> int:
    data = syscalls.buffer(bytes(_SETS.size))
    syscalls.call("capget", _header(), data)  # without opening a file: a worker may have none left to open
    _, low, _, _, high, _ = _SETS.unpack(data.raw)
    return int(low | high << 32)


def _header() -> syscalls.Buffer:
    return syscalls.buffer(struct.pack("=Ii", _VERSION_3, 0))
