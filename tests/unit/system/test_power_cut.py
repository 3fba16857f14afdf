"""What was called durable survives a power cut: a loop ext4 that is shut down with nothing flushed (FS_IOC_SHUTDOWN).

Each test has its counterpart: the same without the sync is lost, so a survivor proves the sync.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelmount.system import atomic, mount

from .processes import detach

FS_IOC_SHUTDOWN = 0x8004587D
NOTHING_FLUSHED = struct.pack("I", 2)


class Disk:
    """An ext4 file system in a file, mounted on `path`, whose power can be cut."""

    def __init__(self, directory: Path) -> None:
        self.image, self.path = directory / "image", directory / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self.image)], check=True)
        self.attach()

    def attach(self) -> None:
        done = subprocess.run(["mount", "-o", "loop", str(self.image), str(self.path)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no loop mounts here: {done.stderr.strip()}")

    def cut(self) -> None:
        """Lose everything that isn't on the disk, and come back."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, NOTHING_FLUSHED)
        finally:
            os.close(fd)
        mount.unmount(self.path)
        self.attach()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed (e2fsprogs)")
    made = Disk(tmp_path)
    try:
        yield made
    finally:
        detach(made.path)


def without_sync(path: Path) -> None:
    path.write_bytes(b"content")


def durable_file(path: Path) -> None:
    atomic.write_file(path, b"content")


def synced_tree(path: Path) -> None:
    path.write_bytes(b"content")
    atomic.sync_tree(path.parent)


def synced_group(path: Path) -> None:
    with atomic.GroupSync(path.parent) as group:
        path.write_bytes(b"content")
        group.sync([path])


@pytest.mark.mount
@pytest.mark.parametrize(
    ("write", "survives"),
    [(without_sync, False), (durable_file, True), (synced_tree, True), (synced_group, True)],
)
def test_what_was_synced_survives_a_power_cut(disk: Disk, write: Callable[[Path], None], survives: bool) -> None:
    write(disk.path / "record")
    disk.cut()
    assert (disk.path / "record").exists() == survives
    if survives:
        assert (disk.path / "record").read_bytes() == b"content"


@pytest.mark.mount
def test_a_rename_is_durable_after_the_fsync_of_its_directory(disk: Disk) -> None:
    for name in ("kept", "lost"):
        atomic.write_file(disk.path / f".{name}", name.encode())
    atomic.rename_noreplace(disk.path / ".kept", disk.path / "kept")
    atomic.fsync_directory(disk.path)
    atomic.rename_noreplace(disk.path / ".lost", disk.path / "lost")
    disk.cut()
    assert sorted(p.name for p in disk.path.iterdir() if p.is_file()) == [".lost", "kept"]
