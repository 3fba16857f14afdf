"""Which mounts are ours, told from mountinfo of hosts and containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelmount.system import mount
from modelmount.volumes.ours import TreeMount, tree_mounts

TREE = "ab" * 32
STORE = Path("/var/lib/modelmount")
TARGET = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/model/mount"


def entries(*rows: tuple[str, str, str]) -> list[mount.MountEntry]:
    """Mounts by device, root and mount point."""
    lines = [
        f"{n} 1 {device} {root} {point} ro - ext4 /dev/x rw".encode() for n, (device, root, point) in enumerate(rows)
    ]
    return mount.parse_mountinfo(b"\n".join(lines))


HOST = ("8:1", "/", "/")


@pytest.mark.parametrize(
    ("above", "prefix"),
    [
        pytest.param([HOST], "/var/lib/modelmount", id="one file system"),
        pytest.param([("8:2", "/", "/"), ("8:1", "/", "/var")], "/lib/modelmount", id="a partition"),
        pytest.param([("0:9", "/", "/"), ("8:1", "/srv/mm", str(STORE))], "/srv/mm", id="a container's bind"),
        pytest.param([HOST, ("8:1", "/@sub", str(STORE))], "/@sub", id="a subvolume"),
    ],
)
def test_the_store_is_found_in_its_file_system(above: list[tuple[str, str, str]], prefix: str) -> None:
    found = tree_mounts(STORE, entries(*above, ("8:1", f"{prefix}/trees/{TREE}/root", TARGET)))
    assert found == {TARGET: TreeMount(TARGET, TREE, True)}


@pytest.mark.parametrize(
    "root",
    [
        f"/var/lib/modelmount/quarantine/1-aa/{TREE}/root",
        f"/var/lib/modelmount/quarantine/{TREE}/root",
        f"/var/lib/modelmount/trash/{TREE}/root",
        f"/var/lib/modelmount/trash/x/{TREE}/root//deleted",
    ],
)
def test_a_tree_that_was_moved_away_is_still_ours(root: str) -> None:
    assert tree_mounts(STORE, entries(HOST, ("8:1", root, TARGET))) == {TARGET: TreeMount(TARGET, TREE, False)}


@pytest.mark.parametrize(
    ("device", "root"),
    [
        ("8:2", f"/var/lib/modelmount/trees/{TREE}/root"),
        ("8:1", f"/var/lib/modelmount-2/trees/{TREE}/root"),
        ("8:1", f"/trees/{TREE}/root"),
        ("8:1", f"/var/lib/modelmount/trees/{TREE}"),
        ("8:1", f"/var/lib/modelmount/trees/{TREE}/root/sub"),
        ("8:1", f"/var/lib/modelmount/trees/.{TREE}.x/root"),
        ("8:1", "/var/lib/modelmount/blobs"),
        ("8:1", "/var/lib/modelmount"),
        ("8:1", "/"),
    ],
)
def test_everything_else_is_not(device: str, root: str) -> None:
    assert tree_mounts(STORE, entries(HOST, (device, root, TARGET))) == {}


def test_of_a_stack_the_top_counts() -> None:
    ours, foreign = ("8:1", f"/var/lib/modelmount/trees/{TREE}/root", TARGET), ("0:5", "/", TARGET)
    assert tree_mounts(STORE, entries(HOST, ours, foreign)) == {}
    assert TARGET in tree_mounts(STORE, entries(HOST, foreign, ours))


def test_without_any_mount_nothing_is_ours() -> None:
    assert tree_mounts(STORE, []) == {}
