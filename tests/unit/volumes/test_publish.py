"""Publish, as a kubelet asks for it: a live publication first, then the lease, then the world. Rows N1 to N10 of the
threat table are named.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from modelmount.content.store import Store
from modelmount.errors import (
    Conflict,
    Forbidden,
    Internal,
    InvalidRequest,
    NotFound,
    Pending,
    Precondition,
    Unavailable,
)
from modelmount.oci.digest import Digest
from modelmount.system import atomic, host, syscalls
from tests.fakes import mounts
from tests.fakes.registry import Registry
from tests.unit.system.processes import bound, mounted
from tests.unit.volumes.conftest import Call, MakeNode, Node, Request, contents, until

pytestmark = [pytest.mark.mount, pytest.mark.registry]

FILES = {"config.json": b"{}\n", "sub/model.safetensors": b"weights" * 1000}


# The ordinary case


def test_a_new_volume_shows_the_files_read_only(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    assert contents(target) == FILES
    assert mounts.options(target) >= {"ro", "nosuid", "nodev", "noexec"}


def test_the_lease_says_what_is_shown_where_and_for_whom(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(target, pushed.reference)
    lease = node.lease(target)
    status = target.stat()
    assert (lease.manifest, lease.reference) == (pushed.digest, pushed.reference)
    assert (lease.device, lease.inode) == (status.st_dev, status.st_ino)
    assert (lease.boot_id, lease.mount_namespace) == (host.boot_id(), host.mount_namespace())
    assert (lease.bytes, lease.files) == (sum(map(len, FILES.values())), len(FILES))
    assert (lease.owner, lease.pod_uid, lease.adopted) == ("csi", "a-pod", False)
    assert lease.attributes == {"model": pushed.reference}


def test_a_second_volume_of_the_model_costs_one_manifest_request(node: Node) -> None:
    pushed = node.push(FILES)
    node.publish(node.target("one"), pushed.reference)
    node.registry.forget()
    node.publish(node.target("two"), pushed.reference, volume="two")
    assert [(r.method, r.status) for r in node.registry.requests()] == [("HEAD", 304)]  # the tag is where it was
    assert os.path.samefile(node.target("one") / "config.json", node.target("two") / "config.json")


def test_one_volume_at_two_targets_is_two_publications(node: Node) -> None:
    pushed = node.push(FILES)
    node.publish(node.target("one"), pushed.reference)
    node.publish(node.target("two"), pushed.reference)
    node.unpublish(node.target("one"))
    assert contents(node.target("two")) == FILES


def test_flags_are_the_admins_and_what_the_volume_adds(make_node: MakeNode) -> None:
    node = make_node(publish={"mount_flags": []})
    pushed = node.push()
    node.publish(node.target("plain"), pushed.reference)
    node.publish(node.target("strict"), pushed.reference, volume="two", flags=("noexec", "noatime", "ro"))
    assert not mounts.options(node.target("plain")) & {"nosuid", "nodev", "noexec"}
    assert mounts.options(node.target("strict")) & {"nosuid", "nodev", "noexec"} == {"noexec"}
    assert "ro" in mounts.options(node.target("plain"))


def test_a_target_that_exists_already_and_is_empty_is_used(node: Node) -> None:
    target = node.target()
    target.mkdir()
    node.publish(target, node.push(FILES).reference)
    assert contents(target) == FILES


def test_one_line_is_logged_with_volume_target_model_and_how(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    pushed = node.push()
    with caplog.at_level(logging.INFO):
        node.publish(node.target("one"), pushed.reference)
        node.publish(node.target("two"), pushed.reference)
    fields = [getattr(r, "fields") for r in caplog.records if r.message == "published"]  # noqa: B009 - typed Any
    assert [f["how"] for f in fields] == ["pulled", "cached"]
    assert {f["model"] for f in fields} == {pushed.digest}
    assert [f["target"] for f in fields] == [str(node.target("one")), str(node.target("two"))]


# Live first


def test_a_live_publication_is_ok_without_network_or_policy(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    node.registry.forget()
    forbidden = msgspec.structs.replace(node.settings, allowed_registries=["none"])
    node.stop()
    node.settings = forbidden
    node.start()
    node.publish(target, pushed.reference)
    assert node.registry.requests() == []
    assert len(mounts.below(node.directory)) == 1
    with pytest.raises(Forbidden):
        node.publish(node.target("new"), pushed.reference, volume="new")


def test_a_moved_tag_does_not_change_a_publication(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference, pullPolicy="Always")
    node.push({"config.json": b"new"})
    node.publish(target, pushed.reference, pullPolicy="Always")
    assert contents(target) == FILES
    node.reboot()
    node.publish(target, pushed.reference, pullPolicy="Always")
    assert contents(target) == FILES


def test_n8_the_same_volume_with_other_attributes_is_a_conflict(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    with pytest.raises(Conflict) as caught:
        node.publish(target, pushed.pinned)
    assert pushed.reference in caught.value.message
    assert contents(target) == FILES
    node.reboot()
    with pytest.raises(Conflict):
        node.publish(target, pushed.pinned)


def test_attributes_that_mean_the_same_or_are_the_kubelets_make_no_difference(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    node.publish(target, f"oci://{pushed.reference}", pullPolicy="IfNotPresent")
    request = Request(
        "volume", str(target), {"model": pushed.reference, "csi.storage.k8s.io/serviceAccount.tokens": "{}"}
    )
    node.publisher.publish(request, Call())
    assert len(mounts.below(node.directory)) == 1


# From the lease


def test_after_a_reboot_the_mount_is_made_again_without_network(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    node.reboot()
    node.registry.forget()
    node.publish(target, pushed.reference)
    assert node.registry.requests() == []
    assert contents(target) == FILES
    assert node.lease(target).in_this_boot


def test_a_mount_that_somebody_removed_is_made_again(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    mounts.detach_below(node.directory)
    node.publish(target, pushed.reference)
    assert contents(target) == FILES


def test_a_dead_mount_at_a_published_target_is_replaced(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    mounts.detach_below(node.directory)
    mounts.dead(Path(target))
    node.publish(target, pushed.reference)
    assert contents(target) == FILES
    assert len(mounts.below(node.directory)) == 1


def test_a_missing_tree_is_pulled_by_the_leases_digest_and_never_by_tag(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    node.reboot()
    forget_content(node.store)
    node.push({"config.json": b"new"})
    node.publish(target, pushed.reference)
    assert contents(target) == FILES
    assert not any(r.path.endswith("/manifests/v1") for r in node.registry.requests())


def forget_content(store: Store) -> None:
    """What eviction of everything leaves."""
    for room in ("trees", "views", "blobs/sha256", "scopes"):
        for path in (store.root / room).iterdir():
            subprocess.run(["rm", "-rf", str(path)], check=True)


def test_a_missing_tree_of_an_absent_model_is_that_verdict_and_the_lease_stays(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    node.reboot()
    forget_content(node.store)
    lease = node.lease(target)
    path = node.registry.storage / f"docker/registry/v2/repositories/{node.repository}"
    subprocess.run(["rm", "-rf", str(path)], check=True)
    with pytest.raises(NotFound):
        node.publish(target, pushed.reference)
    assert node.lease(target) == lease


def test_a_mount_that_cannot_be_made_again_is_unavailable_and_the_lease_stays(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    node.reboot()
    with atomic.armed("system.mount.before_attach=error(EINVAL)"), pytest.raises(Unavailable):
        node.publish(target, pushed.reference)
    assert node.lease(target).manifest == pushed.digest
    (target / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="files in it"):
        node.publish(target, pushed.reference)
    (target / "file").unlink()
    node.publish(target, pushed.reference)
    assert contents(target) == FILES


def test_the_leases_tree_is_shown_even_when_nothing_else_leads_to_it(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference)
    node.reboot()
    for view in (node.store.root / "views").glob("*/*"):
        view.unlink()
    node.registry.forget()
    node.publish(target, pushed.reference)
    assert node.registry.requests() == []


# pullPolicy


def test_never_mounts_what_is_here_and_fetches_no_blob(node: Node) -> None:
    pushed = node.push(FILES)
    with pytest.raises(Precondition, match="modelmount pull"):
        node.publish(node.target(), pushed.reference, pullPolicy="Never")
    assert not any(r.digest for r in node.registry.requests())
    node.assert_nothing_left()
    node.publish(node.target("first"), pushed.reference)
    node.publish(node.target(), pushed.reference, pullPolicy="Never")
    assert contents(node.target()) == FILES


def forget_trees(node: Node) -> None:
    """As if they had been evicted: what they were linked from is here still."""
    for view in (node.store.root / "views").glob("*/*"):
        view.unlink()
    for tree in (node.store.root / "trees").iterdir():
        shutil.rmtree(tree)


@pytest.mark.parametrize("by", ["reference", "pinned"])
def test_never_links_its_tree_again_from_what_is_here(node: Node, by: str) -> None:
    pushed = node.push(FILES)
    node.publish(node.target("first"), pushed.reference)
    node.unpublish(node.target("first"))
    forget_trees(node)
    node.registry.forget()
    node.publish(node.target(), getattr(pushed, by), pullPolicy="Never")
    assert contents(node.target()) == FILES
    assert node.registry.blob_gets() == {}
    assert {r.method for r in node.registry.requests()} == {"HEAD"}


def test_never_links_again_what_a_lease_names_though_its_tag_moved(node: Node) -> None:
    pushed = node.push(FILES)
    node.publish(node.target("first"), pushed.reference)
    node.publish(node.target(), pushed.reference, pullPolicy="Never", volume="own")
    node.push({"config.json": b"new"})
    node.publish(node.target("always"), pushed.reference, pullPolicy="Always", volume="always")
    node.reboot()
    forget_trees(node)
    node.registry.forget()
    node.publish(node.target(), pushed.reference, pullPolicy="Never", volume="own")
    assert contents(node.target()) == FILES
    assert node.registry.blob_gets() == {}


def test_never_with_a_blob_gone_says_what_to_do_and_fetches_nothing(node: Node) -> None:
    pushed = node.push(FILES)
    node.publish(node.target("first"), pushed.reference)
    node.unpublish(node.target("first"))
    forget_trees(node)
    node.store.blob_path(Digest.parse(pushed.layers[0])).unlink()
    node.registry.forget()
    with pytest.raises(Precondition, match="modelmount pull"):
        node.publish(node.target(), pushed.reference, pullPolicy="Never")
    assert node.registry.blob_gets() == {}
    node.assert_nothing_left()


def test_always_asks_the_registry_what_the_tag_means_now(node: Node) -> None:
    pushed = node.push(FILES)
    node.publish(node.target("one"), pushed.reference)
    node.push({"config.json": b"new"})
    node.publish(node.target("known"), pushed.reference, volume="known")
    node.publish(node.target("always"), pushed.reference, volume="always", pullPolicy="Always")
    assert contents(node.target("known")) == FILES
    assert contents(node.target("always")) == {"config.json": b"new"}


# Waiting


def test_a_call_that_cannot_finish_is_pending_with_progress_and_the_next_joins(node: Node) -> None:
    pushed = node.push(FILES)
    node.gate.clear()
    with pytest.raises(Pending) as caught:
        node.publish(node.target(), pushed.reference, call=Call(time.monotonic() + 0.2))
    assert pushed.reference in caught.value.message
    assert node.lease_files() == []
    assert not node.target().exists()
    node.gate.set()
    node.publish(node.target(), pushed.reference)
    assert contents(node.target()) == FILES
    assert set(node.registry.blob_gets().values()) == {1}


def test_an_error_of_the_pull_is_everybodys_own(make_node: MakeNode) -> None:
    node = make_node()
    pushed = node.push()  # bytes of its own: the registry is shared by all tests
    bad = node.registry.blob_file(pushed.layers[1])
    bad.write_bytes(b"x" * bad.stat().st_size)
    node.gate.clear()
    calls = [
        node.background(lambda n=n: node.publish(node.target(f"pod-{n}"), pushed.reference, volume=f"v{n}"))  # type: ignore[misc]
        for n in range(3)
    ]
    node.await_waiting(3)
    node.gate.set()
    results = [call.result() for call in calls]
    assert {type(r).__name__ for r in results} == {"IntegrityError"}
    assert len({id(r) for r in results}) == 3
    node.assert_nothing_left()


# Rows N1 to N4: ids and targets


@pytest.mark.parametrize("volume", ["../../../etc", ".", "a/b", "x" * 256, "ünï", "{}", "\u2028"])
def test_n1_a_volume_id_never_becomes_a_path(node: Node, volume: str) -> None:
    node.publish(node.target(), node.push(FILES).reference, volume=volume)
    (file,) = node.lease_files()
    assert file.parent == node.store.root / "volumes"
    assert [len(part) for part in file.stem.split("-")] == [64, 64]
    node.unpublish(node.target(), volume=volume)
    node.assert_nothing_left()


# What the path may be


@pytest.mark.parametrize(
    "text", ["", "pods/x", "{pods}/../x", "{pods}", "/", "/etc/x", "{pods}/a\0b", "{store}/trees/x"]
)
def test_n2_a_bad_target_is_an_invalid_request(node: Node, text: str) -> None:
    path = text.replace("{pods}", str(node.pods)).replace("{store}", str(node.store.root))
    with pytest.raises(InvalidRequest):
        node.publish(path, "registry.example.com/llm/tiny")
    assert node.registry.requests() == []
    node.assert_nothing_left()


def test_n3_a_symbolic_link_on_the_way_is_refused(node: Node, tmp_path: Path) -> None:
    pushed = node.push()
    victim = tmp_path / "victim"
    victim.mkdir()
    (node.pods / "link").symlink_to(victim)
    for target in (node.pods / "link" / "mount", node.pods / "link"):
        with pytest.raises(Precondition, match="symbolic link"):
            node.publish(target, pushed.reference)
    assert list(victim.iterdir()) == []
    assert node.registry.requests() == []
    node.assert_nothing_left()


def test_n4_what_is_in_the_way_is_refused_before_anything_is_fetched(node: Node) -> None:
    pushed = node.push()
    (file := node.target("file")).write_text("precious")
    (full := node.target("full")).mkdir()
    (full / "file").write_text("precious")
    for target in (file, full):
        with pytest.raises(Precondition):
            node.publish(target, pushed.reference)
    with mounted(node.target("tmpfs"), "tmpfs") as foreign:
        with pytest.raises(Precondition, match="isn't ours"):
            node.publish(foreign, pushed.reference)
        assert mounts.is_mounted(foreign)
    assert node.registry.requests() == []
    assert node.lease_files() == []
    assert file.read_text() == "precious"


def test_a_target_without_its_parent_is_refused_before_a_pull_and_after(node: Node) -> None:
    pushed = node.push()
    orphan = node.target("orphan", parents=False)
    with pytest.raises(Precondition, match="directory above"):
        node.publish(orphan, pushed.reference)
    assert not any(r.digest for r in node.registry.requests())
    node.publish(node.target(), pushed.reference)
    with pytest.raises(Precondition, match="directory above"):
        node.publish(orphan, pushed.reference, volume="two")
    assert len(node.lease_files()) == 1


def test_n4_the_target_of_another_volume_is_refused_and_named(node: Node) -> None:
    target = node.target()
    pushed = node.push(FILES)
    node.publish(target, pushed.reference, volume="first")
    with pytest.raises(Precondition, match="'first'"):
        node.publish(target, pushed.reference, volume="second")
    assert [json.loads(p.read_bytes())["volume_id"] for p in node.lease_files()] == ["first"]
    assert len(mounts.below(node.directory)) == 1


def test_a_tree_of_ours_that_another_mounted_there_is_no_publication(node: Node) -> None:
    pushed = node.push(FILES)
    node.publish(node.target("one"), pushed.reference)
    target = node.target("two")
    target.mkdir()
    with bound(node.target("one"), target), pytest.raises(Precondition):
        node.publish(target, pushed.reference, volume="two")


# What the mount allows: rows N9 and N10


def test_n9_root_cannot_write_into_a_volume(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    for attempt in (
        lambda: os.open(target / "new", os.O_CREAT | os.O_WRONLY),
        lambda: os.open(target / "config.json", os.O_WRONLY),
        lambda: os.open(target, os.O_TMPFILE | os.O_RDWR),
        lambda: os.unlink(target / "config.json"),
        lambda: os.chmod(target / "config.json", 0o777),
        lambda: os.link(target / "config.json", target / "new"),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS


def test_n10_modes_are_plain_whatever_the_artifact_says(node: Node) -> None:
    target = node.target()
    node.publish(target, node.push(FILES).reference)
    for path in (target, *target.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444)
        assert path.stat().st_uid == 0


# Nothing left behind


@pytest.mark.parametrize(
    "where",
    [
        "volumes.publish.before_lease",
        "volumes.lease.before_write",
        "atomic.creating_file.before_rename",
        "atomic.creating_file.before_fsync",
        "volumes.lease.after_write",
        "volumes.publish.before_mount",
        "system.mount.before_attach",
        "volumes.publish.after_mount",
    ],
)
def test_an_error_at_any_step_leaves_nothing_and_the_next_try_succeeds(node: Node, where: str) -> None:
    pushed = node.push(FILES)
    node.publish(node.target("first"), pushed.reference, volume="first")
    node.unpublish(node.target("first"), volume="first")
    with atomic.armed(f"{where}=1*error(EIO)->off"), pytest.raises(Internal):
        node.publish(node.target(), pushed.reference)
    node.assert_nothing_left()
    node.publish(node.target(), pushed.reference)
    assert contents(node.target()) == FILES


def test_a_directory_that_was_there_before_survives_an_error(node: Node) -> None:
    target = node.target()
    target.mkdir()
    with atomic.armed("volumes.publish.after_mount=error(EIO)"), pytest.raises(Internal):
        node.publish(target, node.push().reference)
    assert target.is_dir()
    assert mounts.below(node.directory) == []
    assert node.lease_files() == []


def test_a_full_disk_is_no_verdict(node: Node) -> None:
    pushed = node.push(FILES)
    node.publish(node.target("first"), pushed.reference)
    with atomic.armed("volumes.lease.before_write=error(ENOSPC)"), pytest.raises(Exception) as caught:
        node.publish(node.target(), pushed.reference, volume="two")
    assert type(caught.value).__name__ == "NoSpace"
    assert not node.target().exists()


def test_the_mount_that_cannot_be_taken_back_keeps_its_lease(node: Node) -> None:
    pushed = node.push(FILES)
    target = node.target()
    with (
        atomic.armed("volumes.publish.after_mount=error(EIO)"),
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Unavailable),
    ):
        patch.setattr(syscalls, "umount2", _refuse)
        node.publish(target, pushed.reference)
    assert node.lease(target).manifest == pushed.digest
    node.unpublish(target)
    node.assert_nothing_left()


def test_a_mount_that_was_covered_at_once_keeps_its_lease(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(node.target("warm"), pushed.reference)
    with atomic.armed("volumes.publish.after_mount=delay(300)"):
        call = node.background(lambda: node.publish(target, pushed.reference, volume="two"))
        until(lambda: mounts.is_mounted(target))
        with bound(node.pods, target):
            assert isinstance(call.result(), Unavailable)
    assert node.lease(target, "two").manifest == pushed.digest
    node.unpublish(target, volume="two")
    assert not target.exists()


def _refuse(target: bytes, flags: int) -> None:
    raise OSError(errno.EINVAL, "refused")


def test_a_registry_off_the_allow_list_is_not_asked(make_node: MakeNode, registry: Registry) -> None:
    node = make_node(allowed_registries=["registry.example.com"])
    with pytest.raises(Forbidden):
        node.publish(node.target(), node.push().reference)
    assert node.registry.requests() == []
    node.assert_nothing_left()
