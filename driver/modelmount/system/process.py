"""What this process is and may do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from modelmount.system import syscalls

_PR_SET_DUMPABLE: Final = 4
_CAP_SYS_ADMIN: Final = 21


def harden() -> None:
    """Make files ours alone unless said otherwise, and keep core dumps and other processes of this user from our
    memory (man 2 PR_SET_DUMPABLE): registry passwords are in it.
    """
    os.umask(0o077)
    syscalls.prctl(_PR_SET_DUMPABLE, 0)


def missing_rights() -> str:
    """What this process lacks for mounting, as a sentence's rest; empty when nothing. Root of a container may lack the
    capability.
    """
    if os.geteuid() != 0:
        return f"this process runs as user {os.geteuid()}"
    for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) >> _CAP_SYS_ADMIN & 1:
            return "this process is root without the capability CAP_SYS_ADMIN"
    return ""
