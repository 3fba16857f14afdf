"""What was called durable survives a power cut: a loop file system that is shut down with nothing flushed
(FS_IOC_SHUTDOWN), or left behind for a copy of what had reached its device.

Each test has its counterpart: the same without the sync is lost, so a survivor proves the sync.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelmount.system import atomic
from tests.unit.content import powercut
from tests.unit.content.powercut import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with powercut.powered(tmp_path, 16 << 20) as made:
        yield made


def sync(directory: Path) -> None:
    with atomic.GroupSync(directory) as group:
        group.sync([])


def cut(disk: Disk) -> None:
    """Lose everything that isn't on the disk, and come back."""
    disk.cut(powercut.NOTHING)
    disk.return_power()


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


def renamed_without_sync(path: Path) -> None:
    temporary = path.with_name(".temporary")
    temporary.write_bytes(b"content")
    temporary.rename(path)


def created_file(path: Path) -> None:
    with atomic.creating_file(path, b"content"):
        pass


def settled_file(path: Path) -> None:
    renamed_without_sync(path)
    atomic.settle_file(path)


@pytest.mark.mount
@pytest.mark.parametrize(
    ("write", "survives"),
    [(without_sync, False), (durable_file, True), (synced_tree, True), (synced_group, True)],
)
def test_what_was_synced_survives_a_power_cut(disk: Disk, write: Callable[[Path], None], survives: bool) -> None:
    write(disk.path / "record")
    cut(disk)
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
    cut(disk)
    assert sorted(p.name for p in disk.path.iterdir() if p.is_file()) == [".lost", "kept"]


@pytest.mark.mount
@pytest.mark.parametrize(
    ("write", "survives"), [(renamed_without_sync, False), (created_file, True), (settled_file, True)]
)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("ext4", []), ("ext4", ["-O", "^has_journal"]), ("xfs", [])],
    ids=["ext4", "ext4 without a journal", "xfs"],
)
def test_a_file_that_is_new_is_durable_with_its_name_by_one_fsync(
    tmp_path: Path,
    kind: str,
    options: list[str],
    write: Callable[[Path], None],
    survives: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(atomic, "fsync_directory", asked.append)
    with powercut.powered(tmp_path, (320 if kind == "xfs" else 16) << 20, kind, options) as disk:
        (disk.path / "volumes").mkdir()
        (disk.path / "volumes/before").write_bytes(b"there before")
        sync(disk.path)
        record = disk.path / "volumes/record"
        write(record)
        disk.swap()
        assert {path.name for path in record.parent.iterdir()} == {"before", *(["record"] if survives else [])}
        assert not survives or record.read_bytes() == b"content"
    assert not asked
