"""Figures of the disk, on file systems small enough to know the answer."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path

import pytest

from modelmount.system import disk

from .processes import mounted


@pytest.mark.mount
def test_free_space_and_inodes_shrink_with_use(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", "size=1m,nr_inodes=10") as small:
        assert disk.free_bytes(small) == 1 << 20
        assert disk.free_inodes(small) == 9
        (small / "f").write_bytes(b"x" * 100_000)
        assert disk.free_bytes(small) == (1 << 20) - 25 * 4096
        assert disk.free_inodes(small) == 8


def test_blocks_reserved_for_root_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # bsize, frsize, blocks, bfree, bavail, files, ffree, favail, flag, namemax
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1 << 20, 4096, 100, 50, 30, 0, 0, 0, 0, 255)))
    assert disk.free_bytes(tmp_path) == 30 * 4096
    assert disk.free_inodes(tmp_path) is None


def test_allocated_bytes_leave_out_holes_and_count_an_inode_once(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 30)
    assert disk.allocated_bytes(sparse) == 0
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "full").write_bytes(b"x" * (1 << 20))
    one = disk.allocated_bytes(tmp_path)
    assert 1 << 20 <= one < 2 << 20
    (tmp_path / "again").hardlink_to(tmp_path / "sub" / "full")
    (tmp_path / "link").symlink_to("sub/full")  # short enough to need no block
    assert disk.allocated_bytes(tmp_path) == one


def test_what_has_a_name_elsewhere_is_not_exclusive(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for path in (here, there):
        path.mkdir()
    for name in ("own", "shared", "twice"):
        (here / name).write_bytes(b"x" * (1 << 20))
    os.link(here / "shared", there / "shared")
    os.link(here / "twice", here / "second")
    empty = disk.allocated_bytes(there) - (1 << 20)
    assert disk.exclusive_bytes([here]) == empty + (2 << 20)
    assert disk.exclusive_bytes([here, there]) == 2 * empty + (3 << 20)
    assert disk.exclusive_bytes([here / "own", here / "twice", tmp_path / "missing"]) == 1 << 20


def test_what_is_missing_has_no_bytes(tmp_path: Path) -> None:
    assert disk.allocated_bytes(tmp_path / "missing") == 0


@pytest.mark.parametrize("wait", [False, True])
def test_a_range_is_written_out_and_its_cache_dropped(tmp_path: Path, wait: bool) -> None:
    content = os.urandom(3 << 20)
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, content)
        disk.sync_range(fd, 1 << 20, 1 << 20, wait=wait)
        disk.drop_cache(fd)
        assert os.pread(fd, len(content), 0) == content
    finally:
        os.close(fd)


def test_an_error_of_writing_out_is_not_swallowed() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError) as caught:
            disk.sync_range(writer, 0, 1)
        assert caught.value.errno == errno.ESPIPE
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("count", [0, 1, 4097, 1 << 20])
def test_a_buffer_begins_with_a_page(count: int) -> None:
    view = disk.buffer(count)
    assert len(view) == count
    if count:
        assert ctypes.addressof(ctypes.c_char.from_buffer(view)) % mmap.PAGESIZE == 0
        view[-1] = 7
        assert view.tolist()[-1] == 7
