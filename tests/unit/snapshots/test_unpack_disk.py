"""Unpacking meets the disk: full ones, files in the way, the share that must stay free. Nothing here is a verdict about
the archive.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from modelmount.errors import NoSpace
from modelmount.formats.base import Encoding
from modelmount.snapshots import unpack
from modelmount.system import disk
from tests.fakes.archives import COMPRESS, END, file
from tests.unit.system.processes import mounted

from .archives import LIMITS, Directory

MEGABYTE = 1 << 20


@pytest.mark.mount
@pytest.mark.parametrize("encoding", [Encoding.TAR, Encoding.TAR_GZIP, Encoding.TAR_ZSTD])
def test_t17_a_full_disk_is_an_oserror_for_the_caller(tmp_path: Path, encoding: Encoding) -> None:
    with mounted(tmp_path / "small", "tmpfs", "size=1m") as small:
        target = Directory(small / "d")
        with pytest.raises(OSError) as caught:
            target.unpack(COMPRESS[encoding](file(b"a", os.urandom(2 * MEGABYTE)) + END), encoding)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.mount
def test_t17_exhausted_inodes_are_an_oserror_for_the_caller(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", "size=8m,nr_inodes=32") as small:
        target = Directory(small / "d")
        with pytest.raises(OSError) as caught:
            target.unpack(b"".join(file(b"%d" % n, b"") for n in range(100)) + END)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.mount
def test_t17_the_share_of_the_node_is_left_alone(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", "size=128m") as small:
        target = Directory(small / "d")
        limits = unpack.Limits(bytes=1 << 30, entries=10, free_bytes=64 * MEGABYTE)
        with pytest.raises(NoSpace, match=f"of which {64 * MEGABYTE} must stay"):
            target.unpack(file(b"a", bytes(120 * MEGABYTE)) + END, limits=limits)
        assert disk.free_bytes(small) > (64 - 17) * MEGABYTE


@pytest.mark.mount
def test_t17_the_inodes_of_the_node_are_left_alone(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", "size=8m,nr_inodes=200") as small:
        target = Directory(small / "d")
        limits = unpack.Limits(bytes=MEGABYTE, entries=1000, free_bytes=1)
        with pytest.raises(NoSpace, match="of 200 inodes free"):
            target.unpack(b"".join(file(b"%d" % n, b"") for n in range(300)) + END, limits=limits)


def test_a_link_in_the_way_is_not_followed(target: Directory) -> None:
    (target.files / "0").symlink_to(target.victim)
    with pytest.raises(FileExistsError):
        target.unpack(file(b"a") + END)
    assert target.victim.read_bytes() == b"untouched"


def test_large_members_are_handed_to_the_disk_while_they_grow(
    target: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[int, int]] = []
    monkeypatch.setattr(disk, "sync_range", lambda fd, offset, length: started.append((offset, length)))
    target.unpack(file(b"a", bytes(40 * MEGABYTE)) + END, limits=unpack.Limits(bytes=40 * MEGABYTE, entries=1))
    assert [offset for offset, _ in started] == [0, started[0][1]]
    assert all(length >= unpack.WRITEBACK_BYTES for _, length in started)


def test_nothing_is_left_open(target: Directory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    target.unpack(file(b"a") + END)
    with pytest.raises(FileExistsError):
        target.unpack(file(b"a") + END)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_limits_of_bytes_and_entries_are_inclusive(target: Directory) -> None:
    data = file(b"a", bytes(LIMITS.bytes - 1)) + file(b"b", b"1") + END
    assert len(target.unpack(data, limits=unpack.Limits(bytes=LIMITS.bytes, entries=2))) == 2
