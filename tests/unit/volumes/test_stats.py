"""Use and health of a publication, in constant time."""

from __future__ import annotations

import os

import pytest

from modelmount.errors import NotFound
from tests.fakes import mounts
from tests.unit.volumes.conftest import Node

pytestmark = [pytest.mark.mount, pytest.mark.registry]

FILES = {"config.json": b"{}\n", "model.safetensors": b"weights" * 1000}


def test_the_model_takes_its_bytes_and_the_store_has_the_rest(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    stats = node.publisher.stats("volume", str(target))
    figures = os.statvfs(node.store.root)
    assert stats.used_bytes == sum(map(len, FILES.values()))
    assert stats.used_inodes == len(FILES)
    assert 0 < stats.available_bytes <= figures.f_blocks * figures.f_frsize
    assert stats.available_inodes > 0
    assert not stats.abnormal
    assert pushed.reference in stats.message


@pytest.mark.parametrize("path", ["some/path", "", "/", "/etc", "{pods}", "{pods}/../x", "{pods}/other/mount"])
def test_a_path_where_it_is_not_published_is_not_found(node: Node, path: str) -> None:
    node.publish(node.target(), node.push(FILES).reference)
    with pytest.raises(NotFound):
        node.publisher.stats("volume", path.replace("{pods}", str(node.pods)))


def test_an_unknown_volume_is_not_found(node: Node) -> None:
    node.publish(node.target(), node.push(FILES).reference)
    with pytest.raises(NotFound):
        node.publisher.stats("another", str(node.target()))
    node.unpublish(node.target())
    with pytest.raises(NotFound):
        node.publisher.stats("volume", str(node.target()))


def test_a_mount_that_is_gone_is_abnormal(node: Node) -> None:
    node.publish(node.target(), node.push(FILES).reference)
    mounts.detach_below(node.directory)
    stats = node.publisher.stats("volume", str(node.target()))
    assert stats.abnormal
    assert "mount is gone" in stats.message


def test_a_quarantined_tree_is_abnormal_and_still_mounted(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    tree = node.store.root / "trees" / node.lease(target).tree
    tree.rename(node.store.root / "quarantine" / tree.name)
    stats = node.publisher.stats("volume", str(target))
    assert stats.abnormal
    assert "quarantine" in stats.message
    assert (target / "config.json").read_bytes() == FILES["config.json"]
    node.publish(target, pushed.reference)
    assert len(mounts.below(node.directory)) == 1
