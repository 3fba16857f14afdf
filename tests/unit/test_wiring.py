"""Putting the rooms together: the store is opened where it is ours, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelmount import config, wiring
from modelmount.content.store import ROOMS, Store
from modelmount.errors import Precondition


def settings(root: Path) -> config.Settings:
    return config.Settings(root=str(root))


def test_a_store_is_made_where_there_is_nothing(tmp_path: Path) -> None:
    wiring.open_store(settings(tmp_path / "a/b"))
    assert (tmp_path / "a/b/version").exists()


def test_a_store_is_made_in_an_empty_file_system(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found/#12").write_text("")
    assert wiring.open_store(settings(tmp_path)).root == tmp_path


def test_a_store_that_a_crash_left_half_made_is_finished(tmp_path: Path) -> None:
    for room in ROOMS[:5]:
        (tmp_path / room).mkdir(parents=True)
    (tmp_path / ".version.0123456789abcdef").write_text("1\n")
    wiring.open_store(settings(tmp_path))
    assert (tmp_path / "version").exists()


@pytest.mark.parametrize("name", ["notes.txt", "models/llama/.git/config", "blobs/sha256/abc"])
def test_a_directory_with_somebody_s_files_is_left_alone(tmp_path: Path, name: str) -> None:
    root = tmp_path / "mine"
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text("precious")
    root.chmod(0o755)
    with pytest.raises(Precondition, match="isn't a store, and isn't empty"):
        wiring.open_store(settings(root))
    assert root.stat().st_mode & 0o777 == 0o755
    assert [p for p in root.rglob("*") if p.is_file()] == [root / name]


def test_looking_makes_no_store(tmp_path: Path) -> None:
    assert wiring.existing(settings(tmp_path / "absent")) is None
    assert not (tmp_path / "absent").exists()


def test_what_exists_is_found(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    shelf = wiring.existing(settings(tmp_path / "store"))
    assert shelf is not None
    assert list(shelf.leases.walk()) == []


def test_a_node_can_be_closed_twice_and_takes_no_work_afterwards(tmp_path: Path) -> None:
    node = wiring.build(settings(tmp_path / "store"))
    node.close()
    node.close()
    assert node.puller.jobs() == []


def test_registries_can_be_asked_without_a_store(tmp_path: Path) -> None:
    remote = wiring.connect(settings(tmp_path / "store"))
    remote.close()
    remote.close()
    assert not (tmp_path / "store").exists()
