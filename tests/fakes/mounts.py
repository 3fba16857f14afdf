"""What is mounted where, read from the kernel, for tests that must not trust the driver's own reader."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from modelmount.system import syscalls

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def entries() -> list[tuple[Path, str]]:
    """Mount points of this process's namespace in mounting order, with their options ("ro,nosuid,..."); man 5 proc,
    mountinfo.
    """
    found = []
    with Path("/proc/self/mountinfo").open("rb") as table:
        for line in table:
            fields = line.split()
            path = fields[4].decode("unicode_escape").encode("latin-1")
            found.append((Path(os.fsdecode(path)), fields[5].decode()))
    return found


def below(directory: Path) -> list[Path]:
    """The mount points below `directory`, one entry for each mount."""
    return [path for path, _ in entries() if path.is_relative_to(directory)]


def is_mounted(path: Path) -> bool:
    """Whether something is mounted exactly at `path`."""
    return any(point == path for point, _ in entries())


def options(path: Path) -> set[str]:
    """The options of the topmost mount at `path`; KeyError when nothing is mounted there."""
    for point, text in reversed(entries()):
        if point == path:
            return set(text.split(","))
    raise KeyError(str(path))


def detach_below(directory: Path) -> None:
    """Take away whatever a test left mounted below `directory`, innermost first; also how a reboot looks to the file
    system.
    """
    for path in reversed(below(directory)):
        if _libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))


def dead(path: Path) -> None:
    """Mount a file system there whose server (FUSE) is gone: whoever looks at it gets ENOTCONN."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        data = b"fd=%d,rootmode=40555,user_id=0,group_id=0" % fd
        syscalls.mount(b"test", os.fsencode(path), b"fuse.test", 0, data)
    finally:
        os.close(fd)
