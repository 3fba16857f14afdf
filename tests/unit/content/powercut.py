"""A disk whose power can be cut: ext4 or XFS in a file, shut down by FS_IOC_SHUTDOWN (linux/fs.h; XFS calls the same
number XFS_IOC_GOINGDOWN).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.system.processes import detach

_FS_IOC_SHUTDOWN = 0x8004587D
_SECONDS = 60.0
JOURNAL_ONLY, NOTHING = 1, 2
"""What still reaches the disk: the journal without the data (a rename without its content), or nothing at all."""


class Disk:
    """The mounted file system."""

    def __init__(self, directory: Path, size: int, kind: str = "ext4", options: Sequence[str] = ()) -> None:
        self.image, self.path = directory / "image", directory / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        force = "-f" if kind == "xfs" else "-F"
        subprocess.run([f"mkfs.{kind}", "-q", force, *options, str(self.image)], check=True)
        self._mount_options = "loop,nouuid" if kind == "xfs" else "loop"  # beside a copy of it, too
        self.attach()

    def attach(self) -> None:
        """Mount it, replaying its journal."""
        command = ["mount", "-o", self._mount_options, str(self.image), str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no loop mounts here: {done.stderr.strip()}")

    def swap(self) -> None:
        """Go on from a copy of what has reached the device by now. Unlike `cut` it tells of a file system without a
        journal, too, whose unmount writes what it still has.
        """
        copy = self.image.with_name("copy")
        subprocess.run(["cp", "--sparse=always", str(self.image), str(copy)], check=True)  # holes are most of it
        self.detach()
        copy.replace(self.image)
        self.attach()

    def cut(self, flag: int) -> None:
        """Lose what isn't on the disk. Everything open on it must be closed before `return_power`."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("I", flag))
        finally:
            os.close(fd)

    def return_power(self) -> None:
        """Start again from what is on the disk."""
        self.detach()
        self.attach()

    def detach(self) -> None:
        """Unmount it, for good."""
        deadline = time.monotonic() + _SECONDS
        while (done := subprocess.run(["umount", str(self.path)], capture_output=True, text=True)).returncode:
            # A process that was killed may still be ending.
            if "busy" not in done.stderr or time.monotonic() > deadline:
                raise OSError(errno.EBUSY, done.stderr)
            time.sleep(0.01)
        # A mount that was detached, not unmounted, lives as long as somebody has a file of it open; mounting the image
        # meanwhile would bring back the very file system that was shut down.
        while self._is_in_use():
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "the disk's loop device stays")
            time.sleep(0.01)

    def _is_in_use(self) -> bool:
        for device in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):  # gone meanwhile
                if device.read_text().strip() == str(self.image):
                    return True
        return False


def missing(kind: str) -> str:
    """Why there can be no such disk here; empty where there can."""
    if shutil.which(f"mkfs.{kind}") is None:
        return f"mkfs.{kind} is not installed ({'xfsprogs' if kind == 'xfs' else 'e2fsprogs'})"
    if f"\t{kind}\n" not in Path("/proc/filesystems").read_text():
        return f"this kernel has no {kind}"
    return ""


@contextmanager
def powered(directory: Path, size: int = 64 << 20, kind: str = "ext4", options: Sequence[str] = ()) -> Iterator[Disk]:
    """A fresh disk of so many bytes in a directory, with options of its mkfs; the test is skipped where there can be
    none.
    """
    if why := missing(kind):
        pytest.skip(why)
    disk = Disk(directory, size, kind, options)
    try:
        yield disk
    finally:
        detach(disk.path)
