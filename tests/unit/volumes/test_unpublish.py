"""Unpublish ends what is ours and nothing else. Rows N5 and N6 of the threat table."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from modelmount.config import Settings
from modelmount.errors import Internal, InvalidRequest, Precondition, Unavailable
from modelmount.system import atomic
from modelmount.volumes import publications
from modelmount.volumes.leases import target_lock_name
from modelmount.volumes.publisher import Publisher
from tests.fakes import mounts
from tests.unit.system.processes import bound, mounted
from tests.unit.volumes.conftest import Node, contents

pytestmark = [pytest.mark.mount, pytest.mark.registry]

FILES = {"config.json": b"{}\n"}


def test_mount_directory_and_lease_go_and_the_cache_stays(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    node.unpublish(target)
    node.assert_nothing_left()
    assert target.parent.is_dir()
    node.registry.forget()
    node.publish(target, pushed.reference)
    assert not any(r.digest for r in node.registry.requests())


def test_the_last_use_is_the_last_publish_or_unpublish(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    used = node.store.root / "models" / pushed.digest.removeprefix("sha256:")
    os.utime(used, (1, 1))
    node.publish(node.target("second"), pushed.reference)
    assert used.stat().st_mtime > 1
    os.utime(used, (1, 1))
    node.unpublish(target)
    assert used.stat().st_mtime > 1


def test_twice_is_harmless_and_so_is_what_never_was(node: Node) -> None:
    node.publish(node.target(), node.push(FILES).reference)
    node.unpublish(node.target())
    node.unpublish(node.target())
    node.unpublish(node.target("never"))
    node.unpublish(node.target("nowhere", parents=False))
    node.assert_nothing_left()


def test_a_held_file_stays_readable(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    with (target / "config.json").open("rb") as held:
        node.unpublish(target)
        assert held.read() == FILES["config.json"]
    node.assert_nothing_left()


def test_a_mount_that_is_gone_already_is_no_obstacle(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    mounts.detach_below(node.directory)
    node.unpublish(target)
    node.assert_nothing_left()


def test_after_a_reboot_the_lease_goes(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    node.reboot()
    node.unpublish(target)
    node.assert_nothing_left()


def test_an_empty_directory_below_the_roots_goes_even_without_a_lease(node: Node) -> None:
    node.target().mkdir()
    node.unpublish(node.target())
    node.assert_nothing_left()


def test_a_tree_of_ours_without_a_lease_is_unmounted(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    for lease in node.lease_files():
        lease.unlink()
    node.unpublish(target)
    node.assert_nothing_left()


def test_a_quarantined_tree_without_a_lease_is_unmounted(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    lease = node.lease(target)
    (node.store.root / "quarantine/1-abc").mkdir()
    (node.store.root / "trees" / lease.tree).rename(node.store.root / "quarantine/1-abc" / lease.tree)
    for file in node.lease_files():
        file.unlink()
    node.unpublish(target)
    node.assert_nothing_left()


@pytest.mark.parametrize("text", ["pods/x", "", "{pods}/../../etc", "{pods}/./x", "{pods}/a\0b", "/" + "n" * 256])
def test_n5_text_that_is_no_path_is_an_invalid_request(node: Node, text: str) -> None:
    with pytest.raises(InvalidRequest):
        node.unpublish(text.replace("{pods}", str(node.pods)))


def test_n5_a_forged_target_is_left_alone(node: Node, tmp_path: Path) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    empty = tmp_path / "empty"
    empty.mkdir()
    for forged in ("/", "//", node.store.root, node.store.root / "trees", empty, "/etc", node.pods):
        node.unpublish(forged, volume="forged")
        node.unpublish(forged)
    assert empty.is_dir()
    assert (node.store.root / "trees").is_dir()
    assert contents(target) == FILES


def test_n5_another_volumes_publication_is_left_alone(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    before = node.lease(target)
    node.unpublish(target, volume="forged")
    assert contents(target) == FILES
    assert node.lease(target) == before


def test_n5_a_foreign_mount_or_file_without_a_lease_is_left_alone(node: Node) -> None:
    node.target("file").write_text("precious")
    node.target("full").mkdir()
    (node.target("full") / "file").write_text("precious")
    for name in ("file", "full"):
        node.unpublish(node.target(name))
    assert node.target("file").read_text() == "precious"
    assert (node.target("full") / "file").read_text() == "precious"
    with mounted(node.target("tmpfs"), "tmpfs") as foreign:
        node.unpublish(foreign)
        assert mounts.is_mounted(foreign)


def test_n5_a_bind_of_a_store_directory_that_is_no_tree_is_left_alone(node: Node) -> None:
    node.target().mkdir()
    with bound(node.store.root / "blobs", node.target()):
        node.unpublish(node.target())
        assert mounts.is_mounted(node.target())


def test_n6_a_foreign_mount_on_top_of_a_volume_is_not_ours_to_remove(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    other = node.directory / "other"
    other.mkdir()
    (other / "file").write_text("precious")
    with bound(other, target):
        with pytest.raises(Precondition, match="isn't ours"):
            node.unpublish(target)
        assert (target / "file").read_text() == "precious"
    assert node.lease_files()


def test_n6_nothing_below_a_target_is_ever_deleted(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    mounts.detach_below(node.directory)
    (target / "file").write_text("precious")
    with pytest.raises(Precondition):
        node.unpublish(target)
    assert (target / "file").read_text() == "precious"
    assert node.lease_files()
    (target / "file").unlink()
    node.unpublish(target)
    node.assert_nothing_left()


def test_a_recorded_target_is_ended_after_the_admin_moved_the_roots(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    moved: Settings = msgspec.structs.replace(node.settings, target_roots=[str(node.directory)[:-1]])
    rooms = (node.store, node.resolver, node.puller, node.credentials, moved)
    publisher = Publisher(*rooms)
    publisher.unpublish("another", str(target))
    assert contents(target) == FILES
    publisher.unpublish("volume", str(target))
    node.assert_nothing_left()


@pytest.mark.parametrize(
    "where", ["volumes.unpublish.before_unmount", "volumes.unpublish.before_rmdir", "volumes.lease.before_remove"]
)
def test_an_error_at_any_step_is_healed_by_the_next_call(node: Node, where: str) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    with atomic.armed(f"{where}=error(EIO)"), pytest.raises(Internal):
        node.unpublish(target)
    node.unpublish(target)
    node.assert_nothing_left()


def test_a_busy_target_is_unavailable(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publications, "LOCK_SECONDS", 0.05)
    with node.store.lock(target_lock_name(str(node.target()))).acquire(), pytest.raises(Unavailable):
        node.unpublish(node.target())


def test_no_descriptor_stays_open(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    node.unpublish(target)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        node.publish(target, pushed.reference)
        node.publish(target, pushed.reference)
        node.publisher.stats("volume", str(target))
        node.unpublish(target)
    assert len(os.listdir("/proc/self/fd")) <= before
