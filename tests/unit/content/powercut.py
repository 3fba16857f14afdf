"""A disk whose power can be cut: ext4 in a file, shut down by FS_IOC_SHUTDOWN (linux/fs.h)."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelmount.system import mount
from tests.unit.system.processes import detach

_FS_IOC_SHUTDOWN = 0x8004587D
JOURNAL_ONLY, NOTHING = 1, 2
"""What still reaches the disk: the journal without the data (a rename without its content), or nothing at all."""


class Disk:
    """The mounted file system."""

    def __init__(self, directory: Path, size: int) -> None:
        self.image, self.path = directory / "image", directory / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self.image)], check=True)
        self.attach()

    def attach(self) -> None:
        """Mount it, replaying its journal."""
        done = subprocess.run(["mount", "-o", "loop", str(self.image), str(self.path)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no loop mounts here: {done.stderr.strip()}")

    def cut(self, flag: int) -> None:
        """Lose what isn't on the disk. Everything open on it must be closed before `return_power`."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("I", flag))
        finally:
            os.close(fd)

    def return_power(self) -> None:
        """Start again from what is on the disk."""
        mount.unmount(self.path)
        self.attach()


@contextmanager
def powered(directory: Path, size: int = 64 << 20) -> Iterator[Disk]:
    """A fresh disk of so many bytes in a directory; the test is skipped where there can be none."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed (e2fsprogs)")
    disk = Disk(directory, size)
    try:
        yield disk
    finally:
        detach(disk.path)
