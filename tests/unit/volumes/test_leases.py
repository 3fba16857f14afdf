"""Lease files: one a publication, whole or absent."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from modelmount.content.store import Store
from modelmount.system import atomic, host
from modelmount.system.lock import FileLock
from modelmount.volumes.leases import Lease, Leases, target_lock_name

TARGET = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/model/mount"


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    return Leases(Store(tmp_path / "store"))


def lease(volume_id: str = "volume", target: str = TARGET, **fields: object) -> Lease:
    made = Lease(
        volume_id=volume_id,
        target=target,
        attributes={"model": "harbor.example.com/llm/x:v1"},
        reference="harbor.example.com/llm/x:v1",
        registry="harbor.example.com",
        repository="llm/x",
        manifest="sha256:" + "a" * 64,
        pod_uid="u",
        owner="csi",
    )
    return msgspec.structs.replace(made, **fields)


def files(leases: Leases) -> list[Path]:
    return sorted((leases._store.root / "volumes").rglob("*.json"))


def test_what_is_written_is_read(leases: Leases) -> None:
    leases.write(lease(tree="t", boot_id=host.boot_id()))
    found = leases.read("volume", TARGET)
    assert found is not None
    assert msgspec.structs.replace(found, written_at=0.0) == lease(tree="t", boot_id=host.boot_id())
    assert found.written_at > 0
    assert found.in_this_boot
    assert str(found.model) == "harbor.example.com/llm/x@sha256:" + "a" * 64


def test_other_volumes_and_targets_have_none(leases: Leases) -> None:
    leases.write(lease())
    assert leases.read("other", TARGET) is None
    assert leases.read("volume", TARGET + "x") is None


def test_volumes_targets_and_all_are_listed(leases: Leases) -> None:
    for volume_id, target in (("a", "/1"), ("a", "/2"), ("b", "/1")):
        leases.write(lease(volume_id, target))
    assert sorted(x.target for x in leases.of_volume("a")) == ["/1", "/2"]
    assert sorted(x.volume_id for x in leases.of_target("/1")) == ["a", "b"]
    assert len(list(leases.walk())) == 3
    assert leases.of_volume("c") == leases.of_target("/3") == []


def test_a_lease_goes_once_and_twice(leases: Leases) -> None:
    leases.write(lease())
    leases.remove("volume", TARGET)
    leases.remove("volume", TARGET)
    leases.remove("never", TARGET)
    assert files(leases) == []


def test_names_are_hashes_and_files_are_roots_alone(leases: Leases) -> None:
    leases.write(lease("../../../etc/passwd\0"))
    (file,) = files(leases)
    assert [len(part) for part in file.stem.split("-")] == [64, 64]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_few_lock_files_serve_all_targets() -> None:
    names = {target_lock_name(f"{TARGET}-{n}") for n in range(5000)}
    assert len(names) == 256
    assert target_lock_name(TARGET) == target_lock_name(TARGET)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"volume_id": 1}', b"\xff\xfe", b'{"volume_id": "volume"}'])
def test_an_unreadable_lease_is_absent(leases: Leases, data: bytes) -> None:
    leases.write(lease())
    files(leases)[0].write_bytes(data)
    assert leases.read("volume", TARGET) is None
    assert list(leases.walk()) == []


def test_fields_of_a_newer_version_are_ignored(leases: Leases) -> None:
    leases.write(lease())
    path = files(leases)[0]
    path.write_bytes(path.read_bytes()[:-1] + b',"later":{"x":1}}')
    assert leases.read("volume", TARGET) is not None


@pytest.mark.parametrize("where", ["atomic.write_file.before_fsync", "atomic.write_file.before_rename"])
def test_a_failed_write_leaves_the_old_lease(leases: Leases, where: str) -> None:
    leases.write(lease(tree="old"))
    with atomic.armed(f"{where}=error(EIO)"), pytest.raises(OSError):
        leases.write(lease(tree="new"))
    found = leases.read("volume", TARGET)
    assert found is not None
    assert found.tree == "old"


class Swapped(Store):
    """Where somebody mounts anew at the target between the look at its lease and the lock."""

    def lock(self, name: str) -> FileLock:
        if name == target_lock_name(TARGET):
            Leases(self).write(lease(tree="t"))
        return super().lock(name)


def torn(leases: Leases) -> Path:
    leases.write(lease())
    (path,) = files(leases)
    path.write_bytes(path.read_bytes()[:20])
    return path


def test_a_torn_lease_is_cleared_once_nobody_works_on_its_target(leases: Leases) -> None:
    path = torn(leases)
    with leases._store.lock(target_lock_name(TARGET)).acquire():
        assert leases.clear_torn() == 0
        assert path.exists()
    assert leases.clear_torn() == 1
    assert not path.exists()
    assert leases.clear_torn() == 0


def test_a_lease_that_is_written_anew_meanwhile_is_not_cleared(tmp_path: Path) -> None:
    leases = Leases(Swapped(tmp_path / "store"))
    torn(leases)
    assert leases.clear_torn() == 0
    found = leases.read("volume", TARGET)
    assert found is not None
    assert found.tree == "t"
