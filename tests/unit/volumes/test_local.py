"""Mounts by hand: the same publications, with a person's rules for where and how long."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from modelmount.errors import Cancelled, InvalidRequest, NotFound, Precondition
from modelmount.volumes.local import LocalMounts
from tests.fakes import mounts
from tests.unit.system.processes import mounted
from tests.unit.volumes.conftest import Node, contents, until

pytestmark = [pytest.mark.mount, pytest.mark.registry]

FILES = {"config.json": b"{}\n", "model.safetensors": b"weights" * 1000}


@pytest.fixture
def place(node: Node) -> Path:
    return node.directory / "place"


def test_a_model_is_mounted_and_unmounted(node: Node, place: Path) -> None:
    pushed = node.push(FILES)
    lease = node.local.mount({"model": pushed.reference}, place)
    assert contents(place) == FILES
    assert (lease.owner, lease.manifest, lease.target) == ("cli", pushed.digest, str(place))
    node.local.unmount(place)
    node.assert_nothing_left()
    assert not place.exists()


def test_a_directory_that_was_there_stays(node: Node, place: Path) -> None:
    place.mkdir()
    node.local.mount({"model": node.push(FILES).reference}, place)
    node.local.unmount(place)
    assert place.is_dir()
    node.assert_nothing_left()


def test_twice_is_fine_and_other_attributes_conflict(node: Node, place: Path) -> None:
    pushed = node.push(FILES)
    node.local.mount({"model": pushed.reference}, place)
    node.local.mount({"model": pushed.reference}, place)
    assert len(mounts.below(node.directory)) == 1
    with pytest.raises(Exception, match="already"):
        node.local.mount({"model": pushed.pinned}, place)


def test_a_link_to_a_directory_is_resolved_once(node: Node, place: Path) -> None:
    (node.directory / "real").mkdir()
    place.symlink_to(node.directory / "real")
    node.local.mount({"model": node.push(FILES).reference}, place)
    assert mounts.is_mounted(node.directory / "real")
    node.local.unmount(place)
    node.assert_nothing_left()


def test_a_tag_is_resolved_again_once_the_mount_is_gone(node: Node, place: Path) -> None:
    """Unlike a pod's, a mount made by hand ends when somebody unmounts it by other means."""
    pushed = node.push(FILES)
    node.local.mount({"model": pushed.reference, "pullPolicy": "Always"}, place)
    mounts.detach_below(place)
    node.push({"config.json": b"new"})
    node.local.mount({"model": pushed.reference, "pullPolicy": "Always"}, place)
    assert contents(place) == {"config.json": b"new"}


def test_after_a_reboot_another_model_may_be_mounted_there(node: Node, place: Path) -> None:
    pushed = node.push(FILES)
    node.local.mount({"model": pushed.reference}, place)
    node.reboot()
    node.local.mount({"model": pushed.pinned}, place)
    assert contents(place) == FILES


@pytest.mark.parametrize("where", ["kubelet/pods/x", "kubelet/plugins/x", "store/trees/x", "store", "kubelet"])
def test_what_belongs_to_the_kubelet_or_the_store_is_refused(node: Node, where: str) -> None:
    with pytest.raises(InvalidRequest, match="belongs to"):
        node.local.mount({"model": node.push(FILES).reference}, node.directory / where)
    assert node.registry.requests() == []


def test_a_foreign_mount_or_a_missing_parent_is_refused(node: Node, place: Path) -> None:
    pushed = node.push(FILES)
    with mounted(place, "tmpfs"), pytest.raises(Precondition):
        node.local.mount({"model": pushed.reference}, place)
    with pytest.raises(Precondition, match="directory above"):
        node.local.mount({"model": pushed.reference}, node.directory / "not" / "there")
    assert not any(r.digest for r in node.registry.requests())


def test_what_was_not_mounted_by_hand_is_not_unmounted(node: Node, place: Path) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    for path in (place, target, Path("/")):
        with pytest.raises(NotFound):
            node.local.unmount(path)
    assert contents(target) == FILES


def test_the_wait_is_told_and_can_be_cancelled(node: Node, place: Path) -> None:
    pushed = node.push(FILES)
    settings = msgspec.structs.replace(
        node.settings, publish=msgspec.structs.replace(node.settings.publish, wait_seconds=0.1)
    )
    local = LocalMounts(node.store, node.resolver, node.puller, node.credentials, settings)
    cancelled, told = threading.Event(), list[str]()
    node.gate.clear()
    mounting = node.background(
        lambda: _none(
            local.mount({"model": pushed.reference}, place, cancelled=cancelled, waiting=told.append),
        )
    )
    until(lambda: len(told) >= 2)
    assert pushed.reference in told[0]
    cancelled.set()
    assert isinstance(mounting.result(), Cancelled)
    assert not place.exists()


def _none(value: object) -> None:
    """Forget the value."""


def test_a_driver_beside_leaves_a_persons_mount_alone(node: Node, place: Path) -> None:
    lease = node.local.mount({"model": node.push(FILES).reference}, place)
    node.unpublish(place, volume=lease.volume_id)
    assert contents(place) == FILES
    with pytest.raises(NotFound):
        node.publisher.stats(lease.volume_id, str(place))
