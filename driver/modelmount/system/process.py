"""What this process is and may do."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path
from typing import Final

from modelmount.system import privilege, syscalls

OOM_FIRST: Final = 1000
"""The kernel ends a process with this score first (man 5 proc_pid_oom_score_adj)."""

_PR_SET_DUMPABLE: Final = 4
_NO_CORE: Final = 1
"""Of core dumps, in bytes: less than any has, and unlike 0 it also keeps the kernel from piping one to a program
(fs/coredump.c).
"""


def harden() -> None:
    """Make files ours alone unless said otherwise, and keep core dumps, our programs' too, and other processes of this
    user from our memory (man 2 PR_SET_DUMPABLE): registry passwords are in it.
    """
    os.umask(0o077)
    size = _NO_CORE if resource.getrlimit(resource.RLIMIT_CORE)[1] else 0
    resource.setrlimit(resource.RLIMIT_CORE, (size, size))
    syscalls.prctl(_PR_SET_DUMPABLE, 0)


def go_first() -> None:
    """Where memory is short, end this process and those that it starts before others. Before `harden`: who isn't root
    can't afterwards. Only a wish: where it isn't allowed, the kernel decides.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_FIRST), encoding="ascii")


def missing_rights() -> str:
    """What this process lacks for mounting, as a sentence's rest; empty when nothing. Root of a container may lack the
    capability.
    """
    if os.geteuid() != 0:
        return f"this process runs as user {os.geteuid()}"
    return "" if privilege.holds("SYS_ADMIN") else "this process is root without the capability CAP_SYS_ADMIN"
