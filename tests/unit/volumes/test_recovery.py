"""What a start does with records and mounts: no network, nothing unmounted, no lease of a pod lost."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from modelmount.config import Settings
from modelmount.content.ingest import RAW, Ingest
from modelmount.content.store import Store
from modelmount.errors import Precondition
from modelmount.oci.digest import Digest
from modelmount.system import atomic, host
from modelmount.volumes import recovery
from modelmount.volumes.leases import target_lock_name
from tests.fakes import mounts, opens
from tests.unit.cache.shelf import Shelf, content
from tests.unit.system.processes import bound, mounted
from tests.unit.volumes.conftest import Node, contents

pytestmark = [pytest.mark.mount, pytest.mark.registry]

FILES = {"config.json": b"{}\n", "model.safetensors": b"weights" * 1000}


def counts(found: recovery.Recovered) -> tuple[int, int, int, int]:
    return found.live, found.waiting, found.adopted, found.ended


def lose_leases(node: Node) -> None:
    for path in node.lease_files():
        path.unlink()


def write_record(target: Path, *, driver: str = "csi.modelmount.io", handle: str = "volume") -> None:
    """As the kubelet does before it publishes."""
    (target.parent / "vol_data.json").write_text(json.dumps({"driverName": driver, "volumeHandle": handle, "x": 1}))


def test_an_empty_store_has_nothing_to_recover(node: Node) -> None:
    assert counts(recovery.recover(node.store, node.settings)) == (0, 0, 0, 0)


def test_the_locks_of_targets_are_there_before_the_first_publish(node: Node) -> None:
    for _ in range(2):
        node.restart()
        assert len(list((node.store.root / "locks").glob("target-*"))) == 256


def test_living_mounts_stay_and_answer_without_network(node: Node) -> None:
    pushed = node.push(FILES)
    targets = [node.target(f"pod-{n}") for n in range(3)]
    for target in targets:
        node.publish(target, pushed.reference)
    node.registry.forget()
    assert counts(node.restart()) == (3, 0, 0, 0)
    for target in targets:
        node.publish(target, pushed.reference)
        assert contents(target) == FILES
    assert node.registry.requests() == []
    assert len(mounts.below(node.directory)) == 3
    for target in targets:
        node.unpublish(target)
    node.assert_nothing_left()


def test_after_a_reboot_leases_wait_and_are_published_again(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    assert counts(node.reboot()) == (0, 1, 0, 0)
    node.registry.forget()
    node.publish(target, pushed.reference)
    assert node.registry.requests() == []
    assert contents(target) == FILES


def test_a_living_mount_is_recorded_as_this_boots_and_this_namespaces(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    before = node.lease(target)
    node.leases.write(msgspec.structs.replace(before, boot_id="another boot", mount_namespace=1, inode=1))
    assert counts(node.restart()) == (1, 0, 0, 0)
    after = node.lease(target)
    assert msgspec.structs.replace(after, written_at=0) == msgspec.structs.replace(before, written_at=0)
    node.publish(target, pushed.reference)
    assert len(mounts.below(node.directory)) == 1


def test_a_lease_that_a_killed_driver_may_not_have_synced_is_synced_before_it_counts(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.publish(node.target(), node.push(FILES).reference)
    (file,) = node.lease_files()
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "settle_file", lambda path: synced.append(Path(path)))
    assert counts(node.restart()) == (1, 0, 0, 0)
    assert synced == [file]
    record = msgspec.json.decode(file.read_bytes())
    file.write_bytes(msgspec.json.encode(record | {"written_at": record["written_at"] - 3600}))
    assert counts(node.restart()) == (1, 0, 0, 0)
    assert synced == [file]


def test_a_mount_without_a_lease_is_adopted_under_the_kubelets_name(node: Node) -> None:
    pushed, target = node.push(FILES), node.target("the-pod-uid")
    node.publish(target, pushed.reference)
    known = node.lease(target)
    write_record(target)
    lose_leases(node)
    assert counts(node.restart()) == (0, 0, 1, 0)
    lease = node.lease(target)
    assert (lease.adopted, lease.pod_uid, lease.owner) == (True, "the-pod-uid", "csi")
    assert (lease.tree, lease.bytes, lease.files) == (known.tree, known.bytes, known.files)
    node.registry.forget()
    node.publish(target, pushed.reference)
    node.publish(target, "registry.example.com/whatever/it:was")
    assert node.registry.requests() == []
    assert not node.publisher.stats("volume", str(target)).abnormal
    assert counts(node.restart()) == (1, 0, 0, 0)
    node.unpublish(target)
    node.assert_nothing_left()


def test_an_adopted_tree_is_mounted_again_after_a_reboot_without_network(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    write_record(target)
    lose_leases(node)
    node.restart()
    assert counts(node.reboot()) == (0, 1, 0, 0)
    node.registry.forget()
    node.publish(target, pushed.reference)
    assert node.registry.requests() == []
    assert contents(target) == FILES


def test_an_adopted_lease_whose_tree_is_gone_is_published_anew(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    write_record(target)
    lose_leases(node)
    node.restart()
    node.reboot()
    (tree,) = (node.store.root / "trees").iterdir()
    tree.rename(node.store.root / "quarantine" / tree.name)
    node.publish(target, pushed.reference)
    assert contents(target) == FILES
    assert not node.lease(target).adopted


def test_n5_an_adopted_mount_is_only_its_own_volumes(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    write_record(target)
    lose_leases(node)
    node.restart()
    node.unpublish(target, volume="forged")
    assert contents(target) == FILES
    with pytest.raises(Precondition, match="'volume'"):
        node.publish(target, pushed.reference, volume="forged")
    node.unpublish(target)
    node.assert_nothing_left()


@pytest.mark.parametrize("record", ["missing", "torn", "of another driver"])
def test_a_mount_nobody_has_a_name_for_is_adopted_too(node: Node, record: str) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    if record == "torn":
        (target.parent / "vol_data.json").write_text('{"driverName": ')
    if record == "of another driver":
        write_record(target, driver="csi.example.com")
    lose_leases(node)
    assert counts(node.restart()) == (0, 0, 1, 0)
    node.publish(target, pushed.reference)
    assert len(mounts.below(node.directory)) == 1
    node.unpublish(target)
    node.assert_nothing_left()


def test_an_adopted_lease_without_a_name_ends_with_the_boot(node: Node) -> None:
    node.publish(node.target(), node.push(FILES).reference)
    lose_leases(node)
    node.restart()
    assert counts(node.reboot()) == (0, 0, 0, 1)
    assert node.lease_files() == []


def test_a_quarantined_tree_is_adopted_by_its_inode(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    tree = node.store.root / "trees" / node.lease(target).tree
    lose_leases(node)
    tree.rename(node.store.root / "quarantine" / tree.name)
    write_record(target)
    assert counts(node.restart()) == (0, 0, 1, 0)
    assert node.lease(target).inode == target.stat().st_ino
    assert node.publisher.stats("volume", str(target)).abnormal


def test_foreign_mounts_and_mounts_elsewhere_are_nobodys_business(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    elsewhere = node.directory / "elsewhere"
    elsewhere.mkdir()
    with mounted(node.target("tmpfs"), "tmpfs"), bound(target, elsewhere):
        assert counts(node.restart()) == (1, 0, 0, 0)
        assert len(mounts.below(node.directory)) == 3


def test_a_tree_hidden_by_a_foreign_mount_is_not_taken_for_live(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    other = node.directory / "other"
    other.mkdir()
    with bound(other, target):
        assert counts(node.restart()) == (0, 1, 0, 0)
    node.publish(target, pushed.reference)
    assert contents(target) == FILES


def test_a_target_behind_a_link_keeps_its_lease(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    node.reboot()
    moved = node.pods / "moved"
    (node.pods / "pod").rename(moved)
    (node.pods / "pod").symlink_to(moved)
    assert counts(node.restart()) == (0, 1, 0, 0)
    with pytest.raises(Precondition):
        node.unpublish(target)


def test_a_torn_lease_counts_as_absent_and_its_mount_is_adopted(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    write_record(target)
    (path,) = node.lease_files()
    path.write_bytes(path.read_bytes()[:100])
    assert counts(node.restart()) == (0, 0, 1, 0)
    assert "unreadable" in caplog.text
    node.publish(target, pushed.reference)
    node.unpublish(target)
    node.assert_nothing_left()


def test_a_lease_that_a_power_cut_tore_is_cleared_and_its_pod_gets_its_model(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    (path,) = node.lease_files()
    mounts.detach_below(target)
    path.write_bytes(bytes(path.stat().st_size))
    recovered = node.restart()
    assert recovered.cleared == 1
    assert node.lease_files() == []
    node.publish(target, pushed.reference)
    assert contents(target) == FILES
    node.unpublish(target)
    node.assert_nothing_left()


def test_leases_of_the_command_line_end_with_their_boot_or_their_mount(node: Node) -> None:
    pushed = node.push(FILES)
    places = [node.directory / name for name in ("living", "unmounted")]
    for place in places:
        node.local.mount({"model": pushed.reference}, place)
    assert counts(node.restart()) == (2, 0, 0, 0)
    mounts.detach_below(places[1])
    assert counts(node.restart()) == (1, 0, 0, 1)
    assert counts(node.reboot()) == (0, 0, 0, 1)
    assert node.lease_files() == []


def test_a_command_lines_lease_of_another_namespace_is_left_alone(node: Node) -> None:
    place = node.directory / "place"
    lease = node.local.mount({"model": node.push(FILES).reference}, place)
    mounts.detach_below(place)
    node.leases.write(msgspec.structs.replace(lease, mount_namespace=1))
    assert counts(node.restart()) == (0, 1, 0, 0)


def test_a_command_line_at_work_is_left_alone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "LOCK_SECONDS", 0.01)
    place = node.directory / "place"
    lease = node.local.mount({"model": node.push(FILES).reference}, place)
    mounts.detach_below(place)
    with node.store.lock(target_lock_name(lease.target)).acquire():
        recovery.recover(node.store, node.settings)
    assert len(node.lease_files()) == 1


def test_one_lease_that_cannot_be_written_stops_nobody(node: Node) -> None:
    pushed = node.push(FILES)
    for name in ("one", "two"):
        node.publish(node.target(name), pushed.reference)
        write_record(node.target(name))
    lose_leases(node)
    with atomic.armed("volumes.lease.before_write=1*error(ENOSPC)->off"):
        assert counts(node.restart()) == (0, 0, 1, 0)
    assert counts(node.restart()) == (1, 0, 1, 0)


def test_debris_of_a_dead_driver_goes(node: Node) -> None:
    node.publish(node.target(), node.push(FILES).reference)
    (node.store.root / "trees" / ".half.abc").mkdir()
    (node.store.root / "volumes" / ".half.abc").write_bytes(b"{")
    assert node.restart().cleared >= 1
    assert list((node.store.root / "trees").glob(".*")) == []
    assert list((node.store.root / "volumes").glob(".*")) == []
    assert contents(node.target()) == FILES


def test_the_boot_and_namespace_are_those_of_this_process(node: Node) -> None:
    node.publish(node.target(), node.push(FILES).reference)
    before = [path.stat().st_mtime_ns for path in node.lease_files()]
    node.restart()
    assert [path.stat().st_mtime_ns for path in node.lease_files()] == before  # nothing to rewrite, nothing written
    assert node.lease(node.target()).mount_namespace == host.mount_namespace()


def test_after_an_unclean_stop_only_what_could_be_torn_is_read(tmp_path: Path) -> None:
    """What has its name was durable before it got it: however much that is, a start reads none of it. Of a download the
    next pull reads what its journal speaks of, and nothing else.
    """
    shelf = Shelf(Store(tmp_path / "store"))
    root = shelf.store.root
    made = [shelf.put(f"model-{n}", {"a": content(f"{n}", 5000)}, packed={"b": b"b"}) for n in range(5)]
    shelf.lease(made[0], boot="another")
    name = shelf.partial("torn", 3 << 20)
    half_made = [root / each for each in ("blobs/sha256/.torn.1", "trees/.torn.2", "refs/.torn.3")]
    for path in half_made:
        path.write_bytes(b"torn")
    seen: list[str] = []
    with opens.watched(seen.append):
        found = recovery.recover(shelf.store, Settings(root=str(root), kubelet_root=str(tmp_path / "kubelet")))
    assert found.waiting == 1
    assert [path for path in half_made if path.exists()] == []
    assert read_of(root, seen) <= {"volumes", "locks"}
    seen.clear()
    digest = Digest.of(content("torn", 3 << 20))
    with opens.watched(seen.append), shelf.store.lock(f"ingest-{name}").acquire(timeout=0) as held:
        ingest = Ingest.open(shelf.store, digest, (3 << 20) + 1, "ab" * 16, RAW, held)
        assert ingest.missing == ((3 << 20, (3 << 20) + 1),)
        ingest.close()
    files = [path for path in seen if path.startswith(f"{root}/") and Path(path).is_file()]
    assert {path for path in files if "/locks/" not in path} == {
        f"{root}/ingest/{name}/journal",
        f"{root}/ingest/{name}/data",
    }


def read_of(root: Path, paths: list[str]) -> set[str]:
    """The rooms of the store of which files were opened."""
    files = {Path(path) for path in paths if path.startswith(f"{root}/")}
    return {path.relative_to(root).parts[0] for path in files if path.is_file()}
