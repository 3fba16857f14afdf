"""Writes are whole or absent, whatever ends them, and never replace what they mustn't."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path

import pytest

from modelmount.system import atomic, host

from .processes import mounted, start, stop

OVERWRITE = """
import sys
from pathlib import Path
from modelmount.system import atomic
atomic.write_file(Path(sys.argv[1]), b"new" * 1000)
"""
POINTS = ["before_fsync", "before_rename", "before_directory_fsync"]


def create_file(path: Path) -> None:
    with atomic.creating_file(path, b"new"):
        pass


def test_a_file_is_written_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        atomic.write_file(tmp_path / "a", b"one", 0o444)
        atomic.write_file(tmp_path / "b", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").read_bytes() == b"one"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "b").read_bytes() == b""
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600


def test_a_file_is_replaced_and_its_link_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "link").hardlink_to(tmp_path / "a")
    atomic.write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "link").read_bytes() == b"old"


def test_a_symbolic_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"old")
    (tmp_path / "a").symlink_to("victim")
    atomic.write_file(tmp_path / "a", b"new")
    assert (tmp_path / "victim").read_bytes() == b"old"
    assert not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_the_old_content_or_the_new_whole(tmp_path: Path, point: str) -> None:
    path = tmp_path / "record"
    path.write_bytes(b"old")
    process = start(OVERWRITE, str(path), env={"MODELMOUNT_FAILPOINTS": f"atomic.write_file.{point}=kill"})
    try:
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        stop(process)
    assert path.read_bytes() == (b"new" * 1000 if point == "before_directory_fsync" else b"old")
    others = [p.name for p in tmp_path.iterdir() if p != path]
    assert all(name.startswith(".record.") for name in others)


@pytest.mark.parametrize("point", POINTS[:2])
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path, point: str) -> None:
    (tmp_path / "record").write_bytes(b"old")
    with atomic.armed(f"atomic.write_file.{point}=error(EIO)"), pytest.raises(OSError) as caught:
        atomic.write_file(tmp_path / "record", b"new")
    assert caught.value.errno == errno.EIO
    assert (tmp_path / "record").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["record"]


def test_a_new_file_is_whole_or_absent(tmp_path: Path) -> None:
    with atomic.armed("atomic.creating_file.before_rename=error(EIO)"), pytest.raises(OSError) as caught:
        create_file(tmp_path / "record")
    assert caught.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []
    before = os.umask(0o077)
    try:
        with atomic.creating_file(tmp_path / "record", b"new"):
            assert (tmp_path / "record").read_bytes() == b"new"
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["record"]
    assert (tmp_path / "record").read_bytes() == b"new"
    assert (tmp_path / "record").stat().st_mode & 0o777 == 0o600


def test_a_new_file_that_could_not_be_synced_is_its_callers_to_remove(tmp_path: Path) -> None:
    with atomic.armed("atomic.creating_file.before_fsync=error(EIO)"), pytest.raises(OSError) as caught:
        create_file(tmp_path / "record")
    assert caught.value.errno == errno.EIO
    assert [path.name for path in tmp_path.iterdir()] == ["record"]


@pytest.mark.mount
def test_where_a_name_may_need_a_sync_of_its_own_it_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(atomic, "fsync_directory", asked.append)
    with mounted(tmp_path / "memory", "tmpfs", "size=64k") as memory:
        create_file(memory / "record")
        assert asked == [str(memory)]


@pytest.mark.mount
def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", "size=64k") as small:
        atomic.write_file(small / "record", b"old")
        with pytest.raises(OSError) as caught:
            atomic.write_file(small / "record", b"x" * 200_000)
        assert caught.value.errno == errno.ENOSPC
        assert (small / "record").read_bytes() == b"old"
        assert [p.name for p in small.iterdir()] == ["record"]


def test_racing_writers_leave_one_whole_content(tmp_path: Path) -> None:
    contents = [bytes([n]) * 10_000 for n in range(8)]

    def write(content: bytes) -> None:
        for _ in range(10):
            atomic.write_file(tmp_path / "record", content)

    threads = [threading.Thread(target=write, args=(c,)) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "record").read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["record"]


def test_rename_moves_a_file_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "inner").write_bytes(b"i")
    atomic.rename_noreplace(tmp_path / "a", tmp_path / "b")
    atomic.rename_noreplace(tmp_path / "d", tmp_path / "e")
    assert (tmp_path / "b").read_bytes() == b"a"
    assert (tmp_path / "e" / "inner").read_bytes() == b"i"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "e"]


@pytest.mark.parametrize("existing", ["file", "empty directory", "dangling link"])
def test_rename_refuses_to_replace(tmp_path: Path, existing: str) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    if existing == "empty directory":
        source.mkdir()
        destination.mkdir()
    else:
        source.write_bytes(b"s")
        if existing == "file":
            destination.write_bytes(b"d")
        else:
            destination.symlink_to("nowhere")
    before = os.lstat(destination).st_ino
    with pytest.raises(FileExistsError):
        atomic.rename_noreplace(source, destination)
    assert os.lstat(destination).st_ino == before
    assert source.exists()


def test_rename_of_something_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic.rename_noreplace(tmp_path / "a", tmp_path / "b")


def test_a_tree_is_synced_to_its_last_file_bottom_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t" / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "t" / "sub" / "deep" / "f").write_bytes(b"f")
    (tmp_path / "t" / "g").write_bytes(b"g")
    (tmp_path / "outside").write_bytes(b"o")
    (tmp_path / "t" / "link").symlink_to(tmp_path / "outside")
    synced: list[str] = []
    fsync = os.fsync

    def recording(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink().relative_to(tmp_path)))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", recording)
    atomic.sync_tree(tmp_path / "t")
    assert synced == ["t/sub/deep/f", "t/sub/deep", "t/sub", "t/g", "t"]
    synced.clear()
    atomic.sync_tree(tmp_path / "t", files=False)
    assert synced == ["t/sub/deep", "t/sub", "t"]


def test_a_missing_tree_is_not_called_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic.sync_tree(tmp_path / "missing")


def test_an_old_kernel_syncs_each_file_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "kernel_version", lambda: (5, 4))
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink().name))
    files = [tmp_path / "a", tmp_path / "b"]
    with atomic.GroupSync(tmp_path) as group:
        for file in files:
            file.write_bytes(b"x")
        group.sync(files)
    assert synced == ["a", "b", tmp_path.name]


@pytest.mark.parametrize("size", [0, 1, 64 << 10, (64 << 10) + 1, 300_000])
def test_a_file_is_read_whole_whatever_its_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    assert atomic.read_file(tmp_path / "file") == b"x" * size
    with pytest.raises(FileNotFoundError):
        atomic.read_file(tmp_path / "missing")
