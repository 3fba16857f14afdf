"""What a collection takes and what it leaves."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from modelmount.cache.census import Census
from modelmount.cache.collector import Collector
from modelmount.config import Cache
from modelmount.content import pins
from modelmount.content.pins import Pin
from modelmount.content.pulls import Claim, PullRecord
from modelmount.oci.digest import Digest
from modelmount.pull import verdicts
from modelmount.snapshots import tree as trees
from modelmount.system import host, mount
from modelmount.volumes.leases import target_lock_name
from tests.faults import oracle
from tests.unit.system import processes
from tests.unit.system.processes import bound

from .shelf import Made, Shelf, content

KIB = 1 << 10
HOUR = 3600.0


def collector(shelf: Shelf, cache: Cache | None = None) -> Collector:
    return Collector(shelf.store, lambda: cache or Cache(grace_seconds=60))


def small(shelf: Shelf, name: str, *, idle: float = HOUR, linked: bool = True) -> Made:
    return shelf.put(name, {"model.safetensors": content(name, 64 * KIB)}, idle=idle, linked=linked)


def pin(shelf: Shelf, made: Made, until: float | None = None) -> None:
    pins.add(shelf.store, Pin(str(made.reference), str(made.manifest), time.time(), until))


def everything(shelf: Shelf) -> set[str]:
    """All files of the store but locks and its version."""
    found = {path.relative_to(shelf.store.root).as_posix() for path in shelf.store.root.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("locks/") and name != "version"}


def test_everything_goes_when_nobody_holds_it(shelf: Shelf) -> None:
    for n in range(3):
        shelf.put(f"m{n}", {"w": content(f"m{n}", 99)}, packed={"a/b": b"1", "c": b"2"}, idle=HOUR)
    shelf.partial("rest", 200 * KIB, idle=HOUR)
    used = collector(shelf).plan(0).used
    swept = collector(shelf).collect(math.inf)
    assert everything(shelf) == set()
    assert len(swept.models) == 3
    assert swept.bytes == used > 200 * KIB
    assert [
        d for room in ("scopes", "unpacked", "trees", "trash", "models") for d in (shelf.store.root / room).iterdir()
    ] == []


def test_only_as_much_goes_as_is_wanted_longest_unused_first(shelf: Shelf) -> None:
    old, older, fresh = small(shelf, "old", idle=2 * HOUR), small(shelf, "older", idle=3 * HOUR), small(shelf, "fresh")
    plan = collector(shelf).plan(100 * KIB)
    assert [victim.name for victim in plan.victims] == [str(older.reference), str(old.reference)]
    swept = collector(shelf).collect(100 * KIB)
    assert swept.models == [str(older.reference), str(old.reference)]
    assert shelf.present() == fresh.items
    assert trees.find(shelf.store, fresh.scope, fresh.manifest, "") == fresh.tree
    assert oracle.faults(shelf.store.root) == []


def test_a_collection_of_nothing_takes_only_what_nobody_names(shelf: Shelf) -> None:
    kept = small(shelf, "kept")
    data = content("nobody's", 64 * KIB)
    shelf.store.put_document(data, Digest.of(data), kept.scope)
    os.utime(shelf.store.root / "scopes" / Digest.of(data).hex, (1, 1))
    assert collector(shelf).plan(0).garbage == 64 * KIB
    swept = collector(shelf).collect(0)
    assert (swept.models, swept.items, swept.bytes) == ([], 1, 64 * KIB)
    assert shelf.present() == kept.items
    assert oracle.faults(shelf.store.root) == []


def test_a_published_model_stays_whatever_its_boot(shelf: Shelf) -> None:
    made = small(shelf, "published")
    shelf.lease(made, boot="another")
    before = everything(shelf)
    assert collector(shelf).collect(math.inf).models == []
    assert everything(shelf) == before


def test_a_lease_holds_a_model_of_which_nothing_else_is_recorded(shelf: Shelf) -> None:
    made = small(shelf, "published")
    shelf.lease(made)
    for room in ("models", "refs", "views"):
        for path in (shelf.store.root / room).rglob("*"):
            if path.is_file():
                path.unlink()
    collector(shelf).collect(math.inf)
    assert shelf.present() == made.items
    assert made.tree.root.is_dir()


def test_what_a_person_mounted_ends_with_its_boot(shelf: Shelf) -> None:
    here, before = small(shelf, "here"), small(shelf, "before")
    shelf.lease(here, "a", owner="cli")
    shelf.lease(before, "b", owner="cli", boot="another")
    assert collector(shelf).collect(math.inf).models == [str(before.reference)]


@pytest.mark.mount
@pytest.mark.parametrize("below", ["", "sub"], ids=["the tree", "a directory in it"])
def test_what_the_kernel_shows_stays_though_no_record_says_so(shelf: Shelf, tmp_path: Path, below: str) -> None:
    made = shelf.put("mounted", {"sub/w": content("mounted", 9)}, idle=HOUR)
    target = tmp_path / "target"
    target.mkdir()
    with bound(made.tree.root / below, target):
        assert collector(shelf).collect(math.inf).models == []
        assert (target / ("w" if below else "sub/w")).read_bytes() == made.files["sub/w"]
    assert collector(shelf).collect(math.inf).models == [str(made.reference)]


@pytest.mark.mount
def test_a_mount_that_another_one_hides_holds_too(shelf: Shelf, tmp_path: Path) -> None:
    made, target = small(shelf, "mounted"), tmp_path / "target"
    target.mkdir()
    with bound(made.tree.root, target), bound(tmp_path, target):
        assert collector(shelf).collect(math.inf).models == []


def test_a_pinned_model_stays_until_it_is_unpinned_or_its_time_is_over(shelf: Shelf) -> None:
    kept, over = small(shelf, "kept"), small(shelf, "over")
    pin(shelf, kept)
    pin(shelf, over, until=time.time() - 1)
    for made in (kept, over):
        shelf.age(made, HOUR)
    assert collector(shelf).collect(math.inf).models == [str(over.reference)]
    assert [gone.manifest for gone in pins.remove(shelf.store, str(kept.reference))] == [str(kept.manifest)]
    shelf.age(kept, HOUR)
    assert collector(shelf).collect(math.inf).models == [str(kept.reference)]


def test_the_configuration_pins_what_a_reference_means_here(shelf: Shelf) -> None:
    kept, other = small(shelf, "kept"), small(shelf, "other")
    cache = Cache(grace_seconds=60, pins=[f"oci://{kept.reference}"])
    assert collector(shelf, cache).collect(math.inf).models == [str(other.reference)]


def test_an_unreadable_pin_holds(shelf: Shelf) -> None:
    made = small(shelf, "kept")
    pin(shelf, made)
    (path,) = (shelf.store.root / "models" / made.manifest.hex / "pins").iterdir()
    path.write_bytes(b"{")
    shelf.age(made, HOUR)
    assert collector(shelf).collect(math.inf).models == []


def test_a_live_pull_holds_the_model_and_what_it_claims(shelf: Shelf) -> None:
    made = small(shelf, "pulled")
    partial = shelf.partial("part", 100 * KIB, idle=HOUR)
    record = PullRecord.open(shelf.store, [Claim.of_manifest(made.manifest, made.scope)])
    record.claim(
        [Claim.of_manifest(made.manifest, made.scope), Claim(partial.partition("-")[0], "raw", partial, 1)],
        room=lambda: 1 << 40,
    )
    before = everything(shelf)
    collector(shelf).collect(math.inf)
    assert everything(shelf) == before
    record.close()
    collector(shelf).collect(math.inf)
    assert everything(shelf) == set()


def test_a_shared_blob_goes_with_its_last_model(shelf: Shelf) -> None:
    shared = content("shared", 128 * KIB)
    first = shelf.put("first", {"base": shared, "a": content("a", 8 * KIB)}, idle=3 * HOUR)
    second = shelf.put("second", {"base": shared, "b": content("b", 8 * KIB)}, idle=2 * HOUR)
    collector(shelf).collect(KIB)
    assert shelf.present() == second.items
    assert (second.tree.root / "base").read_bytes() == shared
    plan = collector(shelf).plan(KIB)
    assert plan.victims[0].frees >= 136 * KIB
    collector(shelf).collect(KIB)
    assert shelf.present() == set()
    assert first.items & second.items


def test_two_models_with_equal_files_share_a_tree_until_the_last_goes(shelf: Shelf) -> None:
    files = {"w": content("w", 9)}
    first, second = shelf.put("first", files, idle=HOUR), shelf.put("second", files, idle=HOUR)
    assert first.tree.id == second.tree.id
    shelf.lease(first)
    assert collector(shelf).collect(math.inf).models == []  # what is shown by a held tree is held
    shelf.leases.remove("volume", "/var/lib/kubelet/pods/volume/mount")
    pin(shelf, second)
    assert collector(shelf).collect(math.inf).models == [str(first.reference)]
    assert trees.find(shelf.store, second.scope, second.manifest, "") == second.tree
    assert shelf.present() == second.items


def test_what_gives_nothing_back_stays_unless_everything_must_go(shelf: Shelf) -> None:
    files = {"w": content("w", 64 * KIB)}
    held = shelf.put("held", files, idle=HOUR)
    other = shelf.put("other", files, idle=HOUR)
    pin(shelf, held)
    assert set(collector(shelf).collect(10 * KIB).models) == {str(other.reference)}  # its own manifest is a block
    assert shelf.present() == held.items


def test_a_model_that_was_just_used_stays(shelf: Shelf) -> None:
    made = small(shelf, "fresh", idle=5)
    assert collector(shelf).collect(math.inf).models == []
    assert collector(shelf).collect(math.inf, grace_seconds=1).models == [str(made.reference)]


def test_a_use_in_the_future_holds_no_model_for_ever(shelf: Shelf) -> None:
    old, wrong = small(shelf, "old", idle=2 * HOUR), small(shelf, "wrong", idle=-1e6)
    plan = collector(shelf).plan(math.inf)
    assert [victim.name for victim in plan.victims] == [str(old.reference), str(wrong.reference)]


def test_a_model_that_was_used_since_the_look_stays(shelf: Shelf) -> None:
    made = small(shelf, "used")
    looked = collector(shelf)
    read = looked.reader.read

    def used_meanwhile(*args: object) -> object:
        census = read()
        verdicts.mark_used(shelf.store, made.manifest)
        return census

    looked.reader.read = used_meanwhile  # type: ignore[assignment,method-assign]
    assert looked.collect(math.inf).models == []
    assert shelf.present() == made.items


@pytest.mark.mount
@pytest.mark.parametrize("by", ["a mount", "a lease", "a pin", "a pull"])
def test_what_came_to_be_held_since_the_look_stays(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Nothing of it is written into the model, so that no time of use tells."""
    made, other = small(shelf, "held"), small(shelf, "other")
    target = tmp_path / "target"
    target.mkdir()
    looked = collector(shelf)
    read = looked.reader.read

    with contextlib.ExitStack() as stack:

        def hold() -> None:
            if by == "a mount":
                stack.enter_context(bound(made.tree.root, target))
            elif by == "a lease":
                shelf.lease(made)
            elif by == "a pin":
                pin(shelf, made)
                shelf.age(made, HOUR)
            else:
                record = PullRecord.open(shelf.store, [Claim.of_manifest(made.manifest, made.scope)])
                stack.callback(record.close)

        def held_meanwhile(held: Iterable[str] = ()) -> Census:
            census = read(held)
            hold()
            monkeypatch.undo()
            return census

        monkeypatch.setattr(looked.reader, "read", held_meanwhile)
        assert looked.collect(math.inf).models == [str(other.reference)]
        assert shelf.present() == made.items
        assert (made.tree.root / "model.safetensors").read_bytes() == made.files["model.safetensors"]


@pytest.mark.mount
def test_what_another_mount_namespace_shows_stays(shelf: Shelf, tmp_path: Path) -> None:
    """As a container's, of which only its processes tell."""
    made, target = small(shelf, "mounted"), tmp_path / "target"
    target.mkdir()
    script = 'mount --bind "$1" "$2" && echo mounted && exec cat'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    command += [str(made.tree.root), str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert processes.line(process) == "mounted"
            assert list(target.iterdir()) == []  # nothing of it is to be seen here
            assert collector(shelf).collect(math.inf).models == []
        finally:
            processes.stop(process)
    assert collector(shelf).collect(math.inf).models == [str(made.reference)]


def test_an_orphaned_tree_goes_and_its_model_with_it_when_space_is_wanted(shelf: Shelf) -> None:
    made = small(shelf, "orphan", linked=False)
    os.utime(shelf.store.root / "trees" / made.tree.id / "tree.json", (1, 1))
    swept = collector(shelf).collect(0)
    assert (swept.trees, swept.models) == (1, [])
    assert shelf.present() == made.items
    collector(shelf).collect(math.inf)
    assert everything(shelf) == set()


def test_interrupted_downloads_age_out(shelf: Shelf) -> None:
    shelf.partial("old", 100 * KIB, idle=3 * HOUR)
    young = shelf.partial("young", 100 * KIB, idle=HOUR)
    assert collector(shelf, Cache(grace_seconds=60, partial_seconds=2 * HOUR)).collect(0).partials == 1
    assert [path.name for path in (shelf.store.root / "ingest").iterdir()] == [young]


def test_a_download_that_somebody_works_on_stays(shelf: Shelf) -> None:
    name = shelf.partial("busy", 100 * KIB, idle=HOUR)
    with shelf.store.lock(f"ingest-{name}").acquire():
        assert collector(shelf).collect(math.inf).partials == 0
    assert collector(shelf).collect(math.inf).partials == 1


def test_a_verdict_outlives_the_model_it_is_about(shelf: Shelf) -> None:
    made = small(shelf, "bad")
    path = shelf.store.root / "models" / made.manifest.hex / "verdicts" / "1"
    path.parent.mkdir()
    path.write_text("bad")
    shelf.age(made, HOUR)
    collector(shelf).collect(math.inf)
    assert everything(shelf) == {path.relative_to(shelf.store.root).as_posix()}
    assert collector(shelf).collect(math.inf).models == []


def test_a_model_whose_facts_were_lost_goes_by_its_last_use_all_the_same(shelf: Shelf) -> None:
    """Its reference was resolved before that, and is no sign of it."""
    made = small(shelf, "used")
    directory = shelf.store.root / "models" / made.manifest.hex
    (directory / "facts.json").unlink()
    now = time.time()
    os.utime(directory, (now + HOUR, now + HOUR))
    later = Collector(shelf.store, lambda: Cache(grace_seconds=60), lambda: now + 3 * HOUR)
    assert later.collect(math.inf).models == [str(made.reference)]
    assert everything(shelf) == set()


def test_a_blob_with_a_second_name_stays_though_no_record_names_it(shelf: Shelf) -> None:
    data = content("nobody's", 9)
    digest = Digest.of(data)
    shelf.store.put_document(data, digest, "ab" * 16)
    os.utime(shelf.store.root / "scopes" / digest.hex, (1, 1))
    os.link(shelf.store.blob_path(digest), shelf.store.root / "link")
    assert collector(shelf).collect(math.inf).items == 0
    assert shelf.store.blob_path(digest).exists()


def test_scope_records_left_by_a_killed_sweep_go(shelf: Shelf) -> None:
    shelf.store.admit(Digest.of(b"gone"), "ab" * 16)
    collector(shelf).collect(0)
    assert everything(shelf) == set()


def test_the_plan_says_what_holds_the_rest(shelf: Shelf) -> None:
    published, pinned, free = (small(shelf, name) for name in ("published", "pinned", "free"))
    shelf.lease(published)
    pin(shelf, pinned)
    plan = collector(shelf).plan(0)
    assert plan.held["published"] >= 64 * KIB
    assert plan.held["pinned"] >= 64 * KIB
    assert 64 * KIB <= plan.evictable <= 80 * KIB
    assert plan.victims == ()
    assert free.tree.root.is_dir()


def test_unpacked_models_stay_longer_than_raw_ones_of_the_same_age(shelf: Shelf) -> None:
    size = 4 << 20
    packed = shelf.put("packed", {}, packed={"w": content("p", size)}, idle=2 * HOUR)
    raw = shelf.put("raw", {"w": content("r", size)}, idle=2 * HOUR)
    assert [v.name for v in collector(shelf).plan(math.inf).victims] == [str(raw.reference), str(packed.reference)]


@pytest.mark.mount
def test_a_mount_by_hand_that_was_undone_by_other_means_holds_no_longer(shelf: Shelf, tmp_path: Path) -> None:
    made, target = small(shelf, "made"), tmp_path / "target"
    target.mkdir()
    identity = mount.identity(made.tree.root)
    lease = msgspec.structs.replace(
        shelf.lease(made, owner="cli"),
        target=str(target),
        mount_namespace=host.mount_namespace(),
        device=identity.device,
        inode=identity.inode,
    )
    shelf.leases.remove(lease.volume_id, "/var/lib/kubelet/pods/volume/mount")
    with bound(made.tree.root, target):
        shelf.leases.write(lease)
        assert collector(shelf).collect(math.inf).models == []
        assert len(list(shelf.leases.walk())) == 1
    with shelf.store.lock(target_lock_name(str(target))).acquire():
        assert collector(shelf).collect(math.inf).models == []  # somebody may be mounting it
    assert collector(shelf).collect(math.inf).models == [str(made.reference)]
    assert list(shelf.leases.walk()) == []


def test_a_mount_by_hand_in_another_namespace_holds(shelf: Shelf, tmp_path: Path) -> None:
    made = small(shelf, "made")
    lease = msgspec.structs.replace(shelf.lease(made, owner="cli"), mount_namespace=1)
    shelf.leases.write(lease)
    assert collector(shelf).collect(math.inf).models == []
