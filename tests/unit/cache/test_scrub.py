"""Bad bytes are found, told apart from bad disks, and put where nobody new gets them."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from modelmount.cache import quarantine, scrub
from modelmount.cache.census import Reader
from modelmount.cache.items import Item
from modelmount.cache.scrub import Examined, Place, Result, Scrub, Scrubber
from modelmount.config import Cache
from modelmount.content.store import NewLayer
from modelmount.oci.digest import Digest
from modelmount.snapshots import headers, scatter, unpack
from modelmount.snapshots import tree as trees
from modelmount.system import disk, host, mount
from modelmount.volumes.leases import Lease
from tests.fakes.archives import END, file
from tests.faults import oracle
from tests.unit.system.processes import bound

from .shelf import Made, Shelf, content

KIB = 1 << 10


def items(shelf: Shelf) -> list[Item]:
    return sorted(Reader(shelf.store).read().items.values(), key=lambda item: item.name)


def run(shelf: Shelf, *, isolate: bool = True, rate: int = 0) -> list[Examined]:
    return list(Scrub(shelf.store, lambda: rate, threading.Event(), isolate=isolate).run(items(shelf)))


def bad(found: list[Examined]) -> dict[str, Result]:
    return {each.item: each.result for each in found if each.result is not Result.GOOD}


def damage(path: Path) -> None:
    """One bit, as a disk loses it."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o444)


def filled(shelf: Shelf) -> Made:
    return shelf.put("a", {"w": content("w", 3000 * KIB + 5)}, packed={"p/x": b"x" * 9, "p/y": b"", "p/z": b"z"})


def the(made: Made, kind: str, shelf: Shelf) -> str:
    """The name of its large blob, or of its unpacked layer."""
    found = [item for item in made.items if item.startswith(kind)]
    return max(found, key=lambda name: (shelf.store.root / name).stat().st_size)


def show(shelf: Shelf, made: Made) -> Lease:
    """A lease with the tree's identity, as after a mount."""
    identity = mount.identity(made.tree.root)
    lease = shelf.lease(made)
    lease = Lease(
        **{
            **{f: getattr(lease, f) for f in lease.__struct_fields__},
            "boot_id": host.boot_id(),
            "device": identity.device,
            "inode": identity.inode,
        }
    )
    shelf.leases.write(lease)
    return lease


def test_what_is_right_is_found_right(shelf: Shelf) -> None:
    made = filled(shelf)
    found = run(shelf)
    assert {each.item for each in found} == made.items
    assert bad(found) == {}
    assert oracle.faults(shelf.store.root) == []


def test_a_bad_blob_goes_into_quarantine_with_its_tree_and_its_volumes_are_named(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    made, other = filled(shelf), shelf.put("b", {"v": b"v"})
    lease = show(shelf, made)
    name = the(made, "blobs", shelf)
    damage(shelf.store.root / name)
    (found,) = [each for each in run(shelf) if each.result is not Result.GOOD]
    assert (found.item, found.result) == (name, Result.MISMATCH)
    assert found.quarantined is not None
    assert [each.volume_id for each in found.quarantined.leases] == [lease.volume_id]
    assert found.quarantined.trees == (made.tree.id,)
    assert f"volume {lease.volume_id} shows files that went bad" in caplog.text
    assert (found.quarantined.place / made.tree.id / "root/w").exists()
    assert not made.tree.root.exists()
    assert trees.find(shelf.store, made.scope, made.manifest, "") is None
    assert trees.find(shelf.store, other.scope, other.manifest, "") == other.tree
    assert shelf.leases.read(lease.volume_id, lease.target) is not None
    assert oracle.faults(shelf.store.root) == []
    again = filled(shelf)  # as a new pull does
    assert again.tree.id == made.tree.id
    assert bad(run(shelf)) == {}


@pytest.mark.parametrize("victim", ["files/0", "index.json"])
def test_a_bad_unpacked_layer_goes_as_a_whole(shelf: Shelf, victim: str) -> None:
    made = filled(shelf)
    name = the(made, "unpacked", shelf)
    damage(shelf.store.root / name / victim)
    assert bad(run(shelf)) == {name: Result.MISMATCH}
    assert not (shelf.store.root / name).exists()
    assert not made.tree.root.exists()


def test_a_missing_member_is_a_mismatch(shelf: Shelf) -> None:
    made = filled(shelf)
    name = the(made, "unpacked", shelf)
    (shelf.store.root / name / "files/0").unlink()
    assert bad(run(shelf)) == {name: Result.MISMATCH}


@pytest.mark.parametrize("victim", ["rest", "files/512", "files/1536", None])
def test_a_scattered_layer_is_compared_with_its_archive(shelf: Shelf, victim: str | None) -> None:
    data = file(b"a", b"one") + file(b"b", b"") + file(b"c", b"three") + END
    digest, limits = Digest.of(data), unpack.Limits(bytes=1 << 20, entries=9)
    members = headers.read_small(data, limits, lambda: False, rootfs=False)
    layer = NewLayer(digest, 1, lambda directory: scatter.build(data, directory, members, limits))
    shelf.store.put_group({}, "0" * 32, [layer])
    path = shelf.store.unpacked_path(digest, 1)
    if victim == "files/1536":  # the empty one
        (path / victim).unlink()
    elif victim is not None:
        damage(path / victim)
    assert bad(run(shelf)) == ({f"unpacked/{digest.hex}/1": Result.MISMATCH} if victim is not None else {})
    assert path.exists() == (victim is None)


def test_what_only_reports_moves_nothing(shelf: Shelf) -> None:
    made = filled(shelf)
    name = the(made, "blobs", shelf)
    damage(shelf.store.root / name)
    assert bad(run(shelf, isolate=False)) == {name: Result.MISMATCH}
    assert made.tree.root.exists()
    assert list((shelf.store.root / "quarantine").iterdir()) == []


def test_a_disk_that_cannot_read_is_told_apart_and_nothing_is_moved(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(shelf)
    name = the(made, "blobs", shelf)
    real = disk.read_past_cache

    def failing(path: Path, buffer: object) -> Iterator[memoryview]:
        if path == shelf.store.root / name:
            raise OSError(5, "Input/output error")
        return real(path, buffer)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "read_past_cache", failing)
    found = run(shelf)
    assert bad(found) == {name: Result.UNREADABLE}
    assert made.tree.root.exists()


def test_bytes_that_are_right_the_second_time_stay(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled(shelf)
    name = the(made, "blobs", shelf)
    real, visits = disk.read_past_cache, []

    def flaky(path: Path, buffer: object) -> Iterator[memoryview]:
        visits.append(path)
        for piece in real(path, buffer):  # type: ignore[arg-type]
            yield memoryview(b"other") if path == shelf.store.root / name and visits.count(path) == 1 else piece

    monkeypatch.setattr(disk, "read_past_cache", flaky)
    (found,) = [each for each in run(shelf) if each.result is not Result.GOOD]
    assert found.result is Result.UNREADABLE
    assert "right when read again" in found.detail
    assert made.tree.root.exists()


def test_what_was_collected_meanwhile_is_no_fault(shelf: Shelf) -> None:
    filled(shelf)
    known = items(shelf)
    for item in known:
        path = shelf.store.root / item.name
        if path.is_file():
            path.unlink()
    found = list(Scrub(shelf.store, lambda: 0, threading.Event()).run(known))
    assert {each.result for each in found if each.item.startswith("blobs")} == {Result.GONE}


def test_what_is_not_cached_stays_so_and_what_is_cached_stays_too(shelf: Shelf) -> None:
    made = filled(shelf)
    path = shelf.store.root / the(made, "blobs", shelf)
    fd = os.open(path, os.O_RDONLY)
    try:
        disk.drop_cache(fd)
        if _is_cached(fd):
            pytest.skip("this file system keeps pages, whatever is asked of it")
        run(shelf)
        assert not _is_cached(fd)
        os.pread(fd, 4096, 0)
        assert _is_cached(fd)
        run(shelf)
        assert _is_cached(fd)
    finally:
        os.close(fd)


def _is_cached(fd: int) -> bool:
    """Whether the first page is in memory (man 2 mincore)."""
    with mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as page:
        anchor = ctypes.c_char.from_buffer(page)
        state = ctypes.c_ubyte()
        done = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(anchor)), mmap.PAGESIZE, ctypes.byref(state))
        del anchor
        assert done == 0
        return bool(state.value & 1)


def test_a_cancelled_scrub_ends_in_the_middle_of_a_wait(shelf: Shelf) -> None:
    filled(shelf)
    stopped = threading.Event()
    scrubber = Scrub(shelf.store, lambda: 1, stopped)
    timer = threading.Timer(0.05, stopped.set)
    timer.start()
    assert len(list(scrubber.run(items(shelf)))) < len(items(shelf))
    timer.join()


def test_short_scrubs_reach_everything_in_turn(shelf: Shelf) -> None:
    filled(shelf)
    seen: list[str] = []
    for _ in items(shelf):
        first = next(Scrub(shelf.store, lambda: 0, threading.Event()).run(scrub.in_turn(shelf.store, items(shelf))))
        scrub.reached(shelf.store, first.item)
        seen.append(first.item)
    assert sorted(seen) == [item.name for item in items(shelf)]


def test_what_lies_in_quarantine_is_counted_once(shelf: Shelf) -> None:
    """Its tree still shares good files with the blobs."""
    made = shelf.put("a", {"bad": content("bad", 50_000), "good": content("good", 200_000)}, idle=3600)
    bad = f"blobs/sha256/{hashlib.sha256(content('bad', 50_000)).hexdigest()}"
    assert bad in made.items
    assert quarantine.put(shelf.store, bad, "a test says so") is not None
    assert Reader(shelf.store).used_bytes() == oracle.used(shelf.store.root)


def test_quarantine_is_emptied_once_nobody_shows_it(shelf: Shelf) -> None:
    made = filled(shelf)
    lease = show(shelf, made)
    assert quarantine.put(shelf.store, the(made, "blobs", shelf), "a test says so") is not None
    assert quarantine.release(shelf.store, keep_seconds=0) == 0
    shelf.leases.remove(lease.volume_id, lease.target)
    assert quarantine.release(shelf.store) == 0
    assert quarantine.release(shelf.store, keep_seconds=0) == 1
    assert list((shelf.store.root / "quarantine").iterdir()) == []
    assert list((shelf.store.root / "trash").iterdir()) == []


@pytest.mark.mount
def test_quarantine_stays_under_a_mount(shelf: Shelf, tmp_path: Path) -> None:
    made = filled(shelf)
    (tmp_path / "target").mkdir()
    with bound(made.tree.root, tmp_path / "target"):
        quarantine.put(shelf.store, the(made, "blobs", shelf), "a test says so")
        assert (tmp_path / "target/p/z").read_bytes() == b"z"
        assert quarantine.release(shelf.store, keep_seconds=0) == 0
    assert quarantine.release(shelf.store, keep_seconds=0) == 1


def test_the_background_scrub_finds_it_and_ends(shelf: Shelf) -> None:
    made = filled(shelf)
    name = the(made, "blobs", shelf)
    damage(shelf.store.root / name)
    found = threading.Event()
    real = quarantine.put

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quarantine, "put", lambda *args: (real(*args), found.set())[0])  # type: ignore[func-returns-value]
        with Scrubber(shelf.store, Reader(shelf.store), Cache, first_seconds=0):
            assert found.wait(60)
    assert not (shelf.store.root / name).exists()


def test_everything_is_scrubbed_once_a_week_and_a_pass_that_was_broken_off_goes_on(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(shelf)
    read: list[str] = []
    real = Scrub._examine

    def examine(self: Scrub, item: Item) -> Examined:
        read.append(item.name)
        return real(self, item)

    monkeypatch.setattr(Scrub, "_examine", examine)
    names = [item.name for item in items(shelf)]

    def anew(place: Place | None = None, **cache: object) -> list[str]:
        """What a driver that starts now reads in its first two rounds."""
        read.clear()
        if place is not None:
            (shelf.store.root / "scrub.json").write_bytes(msgspec.json.encode(place))
        scrubber = Scrubber(shelf.store, Reader(shelf.store), lambda: msgspec.convert(cache, Cache))
        for _ in range(2):
            scrubber.round()
        return list(read)

    assert anew() == names
    assert anew() == []
    week = scrub.PASS_SECONDS
    assert anew(Place("", time.time() - week + 600)) == []
    assert anew(Place("", time.time() - week)) == names
    assert anew(Place(names[1], time.time() - 600)) == names[2:]
    assert anew(Place("", time.time() - week), scrub_bytes_per_second=0) == []
