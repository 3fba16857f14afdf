"""Leases of pods that are gone without an unpublish: they end after a grace time, and never on doubt. And mounts that
the kubelet has no record of any more.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from modelmount.system import host
from modelmount.volumes.leases import target_lock_name
from modelmount.volumes.vanished import Looked, Vanished
from tests.fakes import mounts
from tests.unit.system.processes import bound
from tests.unit.volumes.conftest import Node, contents

pytestmark = [pytest.mark.mount, pytest.mark.registry]

GRACE = 600.0
FILES = {"config.json": b"{}\n", "model.safetensors": b"weights" * 1000}


class Looking:
    """Looks at a node whose clock the test moves."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.heard, self.time = True, 0.0
        self.vanished = Vanished(node.store, node.settings.publish_roots, lambda: self.heard, lambda: self.time)

    def after(self, seconds: float) -> Looked:
        self.time += seconds
        return self.vanished.look(GRACE)

    def leases(self) -> int:
        return len(self.node.lease_files())


@pytest.fixture
def looking(node: Node) -> Looking:
    """A node with two pods of one model."""
    pushed = node.push(FILES)
    for name in ("gone", "living"):
        record(node, name).write_text("{}")
        node.publish(node.target(name), pushed.reference)
    return Looking(node)


def record(node: Node, name: str) -> Path:
    """The kubelet's, of the pod's volume."""
    return node.target(name).parent / "vol_data.json"


def remove(node: Node, name: str) -> None:
    """As somebody who cleans up by hand: the mount first, for the kernel keeps its directory."""
    mounts.detach_below(node.pods / name)
    shutil.rmtree(node.pods / name)


def in_an_earlier_boot(node: Node, name: str) -> None:
    for path in node.lease_files():
        record = json.loads(path.read_bytes())
        if record["target"] == str(node.target(name, parents=False)):
            path.write_text(json.dumps({**record, "boot_id": "another boot", "mount_namespace": 1}))


def test_a_vanished_pods_lease_ends_after_the_grace_time(looking: Looking, caplog: pytest.LogCaptureFixture) -> None:
    node = looking.node
    remove(node, "gone")
    in_an_earlier_boot(node, "gone")
    assert looking.after(0) == Looked(0, GRACE)
    assert looking.after(GRACE - 1) == Looked(0, 1.0)
    assert looking.leases() == 2
    assert looking.after(1).ended == 1
    (record,) = [r for r in caplog.records if "vanished" in r.getMessage()]
    assert record.__dict__["fields"]["target"] == str(node.target("gone", parents=False))
    assert [node.lease(node.target("living")).target] == [str(node.target("living"))]
    assert contents(node.target("living")) == FILES
    node.unpublish(node.target("gone", parents=False))  # whoever comes late finds it done
    assert looking.after(10 * GRACE) == Looked(0, float("inf"))


def test_living_pods_are_left_alone_however_long(looking: Looking) -> None:
    for _ in range(3):
        assert looking.after(GRACE) == Looked(0, float("inf"))
    assert looking.leases() == 2


def test_after_a_reboot_a_pod_that_is_still_there_keeps_its_lease(looking: Looking) -> None:
    looking.node.reboot()
    for _ in range(3):
        looking.after(GRACE)
    assert looking.leases() == 2


def test_a_pod_that_comes_back_begins_anew(looking: Looking) -> None:
    node = looking.node
    remove(node, "gone")
    in_an_earlier_boot(node, "gone")
    looking.after(0)
    node.target("gone")
    looking.after(GRACE)
    shutil.rmtree(node.pods / "gone")
    assert looking.after(GRACE) == Looked(0, GRACE)
    assert looking.after(GRACE).ended == 1


@pytest.mark.parametrize("doubt", ["no pods", "no directory", "not a directory", "a kubelet never came"])
def test_nothing_ends_on_doubt(looking: Looking, doubt: str, caplog: pytest.LogCaptureFixture) -> None:
    node = looking.node
    remove(node, "gone")
    for name in ("gone", "living"):
        in_an_earlier_boot(node, name)
    away = node.pods.with_name("away")
    if doubt == "a kubelet never came":
        looking.heard = False
    else:
        mounts.detach_below(node.pods)
        node.pods.rename(away)
        if doubt == "no pods":
            node.pods.mkdir()
        elif doubt == "not a directory":
            node.pods.write_bytes(b"")
    for _ in range(3):
        assert looking.after(GRACE).ended == 0
    assert looking.leases() == 2
    if doubt != "a kubelet never came":
        assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["pods are missing, but their leases stay"]


def test_an_empty_file_system_mounted_over_the_pods_ends_nothing(looking: Looking) -> None:
    node = looking.node
    other = node.directory / "other"
    other.mkdir()
    for name in ("gone", "living"):
        in_an_earlier_boot(node, name)
    with bound(other, node.pods):
        for _ in range(3):
            assert looking.after(GRACE).ended == 0
    assert looking.leases() == 2


def test_a_lease_whose_tree_the_kernel_still_shows_stays_for_this_boot(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "sees_all_processes", lambda: True)
    node = looking.node
    container = node.directory / "container"
    container.mkdir()
    with bound(node.target("gone"), container):  # as a container's own clone
        remove(node, "gone")
        node.unpublish(node.target("living"))
        looking.after(0)
        assert looking.after(GRACE).ended == 0
        assert contents(container) == FILES
    assert looking.after(1).ended == 1


def test_where_containers_cannot_be_seen_a_lease_of_this_boot_stays(
    looking: Looking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host, "sees_all_processes", lambda: False)
    node = looking.node
    remove(node, "gone")
    looking.after(0)
    assert looking.after(GRACE).ended == 0
    assert "hostPID" in caplog.text
    in_an_earlier_boot(node, "gone")
    assert looking.after(1).ended == 1


def test_a_mount_without_the_kubelets_record_goes_after_the_grace_time(
    looking: Looking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host, "sees_all_processes", lambda: True)
    node = looking.node
    node.unpublish(node.target("living"))  # whose mount is of the same tree
    record(node, "gone").unlink()
    looking.heard = False
    looking.after(0)
    assert looking.after(GRACE).ended == 0
    assert contents(node.target("gone")) == FILES, "before a kubelet came"
    looking.heard = True
    assert looking.after(0).ended == 1
    assert looking.leases() == 0
    assert [*node.target("gone").parent.iterdir()] == [], "the kubelet can remove the rest"
    (said,) = [r for r in caplog.records if "no record of a mount" in r.getMessage()]
    assert said.__dict__["fields"]["target"] == str(node.target("gone"))


def test_a_record_that_comes_back_keeps_its_mount(looking: Looking) -> None:
    node = looking.node
    record(node, "gone").unlink()
    assert looking.after(0) == Looked(0, GRACE)
    record(node, "gone").write_text("{}")
    assert looking.after(GRACE) == Looked(0, float("inf"))
    record(node, "gone").unlink()
    assert looking.after(0) == Looked(0, GRACE)
    assert looking.after(GRACE - 1) == Looked(0, 1.0)
    assert looking.leases() == 2
    assert contents(node.target("gone")) == FILES


def test_something_else_at_a_target_without_a_record_stays(looking: Looking, tmp_path: Path) -> None:
    node = looking.node
    record(node, "gone").unlink()
    with bound(tmp_path, node.target("gone")):
        looking.after(0)
        assert looking.after(GRACE).ended == 0
        assert mounts.is_mounted(node.target("gone"))
    assert looking.leases() == 2


@pytest.mark.parametrize("seen", [True, False])
def test_a_container_keeps_what_its_pod_had_and_the_lease_with_it(
    looking: Looking, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    monkeypatch.setattr(host, "sees_all_processes", lambda: seen)
    node = looking.node
    node.unpublish(node.target("living"))
    container = node.directory / "container"
    container.mkdir()
    with bound(node.target("gone"), container):  # as a container's own clone
        record(node, "gone").unlink()
        looking.after(0)
        assert looking.after(GRACE).ended == 0
        assert not node.target("gone").exists()
        assert contents(container) == FILES
        assert looking.leases() == 1
        shutil.rmtree(node.pods / "gone")  # which the kubelet does once no container runs
        looking.after(0)
        assert looking.after(GRACE).ended == 0
    assert looking.after(1).ended == (1 if seen else 0)


def test_whoever_works_on_the_target_is_left_alone(looking: Looking) -> None:
    node = looking.node
    remove(node, "gone")
    in_an_earlier_boot(node, "gone")
    looking.after(0)
    with node.store.lock(target_lock_name(str(node.target("gone", parents=False)))).acquire():
        assert looking.after(GRACE).ended == 0
    assert looking.after(1).ended == 1


def test_leases_elsewhere_and_by_hand_are_not_the_kubelets(node: Node, tmp_path: Path) -> None:
    pushed = node.push(FILES)
    node.target("other")
    place = tmp_path / "place"
    node.local.mount({"model": pushed.reference}, place)
    odd = node.pods / "odd" / "mount"
    odd.parent.mkdir()
    node.publish(odd, pushed.reference)
    mounts.detach_below(node.pods)
    shutil.rmtree(node.pods / "odd")
    mounts.detach_below(place)
    looking = Looking(node)
    for _ in range(3):
        assert looking.after(GRACE).ended == 0
    assert looking.leases() == 2
