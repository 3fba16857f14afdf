"""An uncompressed tar goes straight into its members, in whatever order its bytes come, and is what the other reader
makes of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmount.content import ingest as ingests
from modelmount.content import writer as writers
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, IntegrityError, Internal, NoSpace
from modelmount.formats.base import Member
from modelmount.oci.digest import Digest
from modelmount.snapshots import layers, talk, unpack
from modelmount.snapshots.scatter import Scatter
from modelmount.system import disk
from tests.fakes.archives import END, directory, extended, file, header, long_name, padded, record
from tests.fakes.evil_archives import ROWS
from tests.faults import oracle
from tests.unit.content.downloads import SCOPE, assert_right, content, descriptors, died, feed, recorded
from tests.unit.content.powercut import JOURNAL_ONLY, NOTHING, powered
from tests.unit.system.processes import mounted

from .archives import LIMITS, Directory
from .test_tar_plain import SPELLINGS

MEGABYTE = 1 << 20
WEIGHTS = content(3 * MEGABYTE + 77)
LONG = "d" * 120 + "/" + "e" * 90
MIXED = b"".join(
    (
        directory(b"d"),
        file(b"d/config.json", b"{}"),
        file(b"empty", b""),
        long_name(LONG.encode()) + file(b"x", WEIGHTS),
        extended(record(b"path", b"f") + record(b"size", b"700")) + header(b"x") + padded(content(700)),
        *(file(b"small/%03d" % n, content(n, str(n))) for n in range(200)),
        END,
    )
)


class Archive:
    """An archive, its store, and the ingest that it goes into."""

    def __init__(self, store: Store, data: bytes, limits: unpack.Limits = LIMITS, *, rootfs: bool = False) -> None:
        self.store, self.data, self.limits, self.rootfs = store, data, limits, rootfs
        self.digest = Digest.of(data)
        self.scatter: Scatter

    def open(self) -> Ingest:
        name = ingests.name(self.digest, SCOPE, ingests.UNPACKED)
        held = self.store.lock("ingest-" + name).acquire(timeout=0)
        size = len(self.data)
        return Ingest.open(self.store, self.digest, size, SCOPE, ingests.UNPACKED, held, body=self._body)

    def _body(self, directory: Path) -> Scatter:
        self.scatter = Scatter(directory / "layer", len(self.data), self.limits, rootfs=self.rootfs)
        return self.scatter

    def commit(self, ingest: Ingest) -> Path:
        """The committed layer."""
        ingest.commit_unpacked(self.scatter.finish(), 1)
        return self.store.unpacked_path(self.digest, 1)

    def files(self) -> dict[str, bytes | None]:
        """What the committed layer holds, by path."""
        members = layers.members(self.store, self.digest, 1)
        source = f"{self.digest.hex}/1"
        return {
            m.path: layers.source_path(self.store, f"{source}/{m.number}").read_bytes() if m.is_file else None
            for m in members
        }


def scattered(store: Store, data: bytes, limits: unpack.Limits = LIMITS, *, rootfs: bool = False) -> Archive:
    """Fed from the beginning, as a fast connection does, and committed."""
    archive = Archive(store, data, limits, rootfs=rootfs)
    ingest = archive.open()
    try:
        feed(ingest, data)
        archive.commit(ingest)
    finally:
        ingest.close()
    return archive


# -- the same as the other reader


def test_a_layer_holds_the_members_and_all_that_is_needed_to_make_the_archive_again(store: Store) -> None:
    talk.helper.prepare()  # its socket stays
    before = descriptors()
    archive = scattered(store, MIXED)
    found = archive.files()
    assert found["d"] is None
    assert (found["d/config.json"], found["empty"], found[LONG], found["f"]) == (b"{}", b"", WEIGHTS, content(700))
    assert all(found[f"small/{n:03}"] == content(n, str(n)) for n in range(200))
    layer = store.unpacked_path(archive.digest, 1)
    assert oracle.scattered(layer) == archive.digest.hex
    assert {path.stat().st_mode & 0o7777 for path in [*layer.glob("files/*"), layer / "rest"]} == {0o444}
    assert list((store.root / "ingest").iterdir()) == []
    assert descriptors() == before


def test_what_is_in_no_member_takes_little_room(store: Store) -> None:
    archive = scattered(store, file(b"a", WEIGHTS) + END)
    rest = (store.unpacked_path(archive.digest, 1) / "rest").stat()
    assert rest.st_size == len(archive.data)
    assert rest.st_blocks * 512 <= 3 * 4096


@pytest.mark.parametrize(("data", "expected"), [s[1:] for s in SPELLINGS], ids=[s[0] for s in SPELLINGS])
def test_spellings_of_the_formats_are_read(store: Store, data: bytes, expected: dict[str, bytes | None]) -> None:
    assert scattered(store, data).files() == expected


@pytest.mark.parametrize(("data", "reason"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_breaks_other_readers_is_refused_once_all_of_it_is_there(store: Store, data: bytes, reason: str) -> None:
    archive = Archive(store, data)
    ingest = archive.open()
    feed(ingest, data)
    assert_right(ingest, data)
    with pytest.raises(BadArtifact, match=reason):
        archive.scatter.finish()
    files = ingest.directory / "layer" / "files"
    assert all(path.name.isdigit() and path.is_file() and not path.is_symlink() for path in files.iterdir())
    assert {path.name for path in files.parent.iterdir()} == {"files", "rest"}
    ingest.discard()
    assert store.unpacked_rules(archive.digest, SCOPE) is None


def test_layers_of_images_are_read_as_such(store: Store) -> None:
    link = header(b"b", kind=b"2", link=b"/etc")
    archive = scattered(store, file(b"/a", b"1") + file(b"a", b"22") + link + END, rootfs=True)
    numbers = [member.number for member in layers.members(store, archive.digest, 1)]
    assert layers.members(store, archive.digest, 1) == (
        Member(numbers[0], "a", False, 1, ""),
        Member(numbers[1], "a", False, 2, ""),
        Member(numbers[2], "b", False, 0, "", "symlink", "/etc"),
    )
    source = f"{archive.digest.hex}/1/{numbers[1]}"
    assert layers.source_path(store, source).read_bytes() == b"22"
    assert layers.sha256_of(store, source) == Digest.of(b"22").hex


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A few members of sizes around the edges of blocks and buffers, with and without extended headers."""
    sizes = draw(st.lists(st.sampled_from([0, 1, 511, 512, 513, 4096, 70_001]), max_size=8))
    parts = []
    for n, size in enumerate(sizes):
        before = long_name(b"l" * 150 + b"%d" % n) if draw(st.booleans()) else b""
        parts.append(before + file(b"%d" % n, content(size, str(n))))
    return b"".join(parts) + draw(st.sampled_from([b"", bytes(512), END, bytes(10240)]))


@settings(max_examples=40)
@given(
    data=archives(), buffers=st.lists(st.integers(1, 200_000), min_size=1), cuts=st.lists(st.floats(0, 1), max_size=4)
)
def test_whatever_the_pieces_and_the_ends_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, buffers: Sequence[int], cuts: Sequence[float]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    archive = Archive(store, data)
    ingest = archive.open()
    sizes = iter(buffers)
    for cut in [*sorted(int(cut * len(data)) for cut in cuts), len(data)]:
        for first, last in ingest.missing:
            with ingest.writer(first) as writer:
                while writer.offset < min(last, cut):
                    end = min(last, cut, writer.offset + next(sizes, 65_536))
                    writer.append(memoryview(data)[writer.offset : end])
        if cut < len(data):
            died(ingest)
            ingest = archive.open()
            assert ingest.missing == (((cut, len(data)),) if cut < len(data) else ())
            assert_right(ingest, data)
    archive.commit(ingest)
    whole = Directory(tmp_path_factory.mktemp("whole"))
    assert archive.files() == whole.contents(whole.unpack(data))
    assert oracle.scattered(store.unpacked_path(archive.digest, 1)) == archive.digest.hex


# -- ranges


def test_a_header_gives_everything_up_to_the_next_one_its_place(store: Store) -> None:
    data = file(b"a", WEIGHTS) + file(b"b", WEIGHTS) + END
    second = 512 + len(padded(WEIGHTS))
    archive = Archive(store, data)
    ingest = archive.open()
    assert ingest.front == 0
    with ingest.writer(0) as writer:
        writer.append(memoryview(data)[:511])
        assert ingest.front == 511
        writer.append(memoryview(data)[511:600])
    assert ingest.front == second
    with ingest.writer(second) as writer:  # behind a gap, at the front
        writer.append(memoryview(data)[second : second + 2000])
    assert ingest.front == len(data) - len(END)
    with pytest.raises(Internal, match="refusing to write byte"), ingest.writer(ingest.front + 512) as writer:
        writer.append(memoryview(bytes(512)))
    for first, last in ((MEGABYTE, second), (second + 2000, len(data)), (600, MEGABYTE)):
        with ingest.writer(first) as writer:
            writer.append(memoryview(data)[first:last])
    archive.commit(ingest)
    assert archive.files() == {"a": WEIGHTS, "b": WEIGHTS}


def test_threads_that_fill_members_side_by_side_with_a_reader_behind(store: Store) -> None:
    members = [content(2 * MEGABYTE + n, str(n)) for n in range(4)]
    data = b"".join(file(b"%d" % n, member) for n, member in enumerate(members)) + END
    archive = Archive(store, data)
    ingest = archive.open()
    starts = [sum(512 + len(padded(member)) for member in members[:n]) for n in range(5)]
    errors: list[Exception] = []

    def fill(first: int, last: int) -> None:
        try:
            while ingest.front < first and not errors:
                threading.Event().wait(0.001)
            with ingest.writer(first) as writer:
                while writer.offset < last:
                    writer.append(memoryview(data)[writer.offset : min(last, writer.offset + 10_000)])
        except Exception as e:  # noqa: BLE001 - told in the test's own thread
            errors.append(e)

    def follow() -> None:
        position = 0
        view = memoryview(bytearray(100_000))
        while position < len(data) and not errors:
            limit = ingest.offset
            while position < limit:
                count = ingest.read_into(view[: limit - position], position)
                if bytes(view[:count]) != data[position : position + count]:
                    errors.append(AssertionError(position))
                    return
                position += count

    threads = [threading.Thread(target=follow)]
    threads += [
        threading.Thread(target=fill, args=(first, last))
        for first, last in zip(starts, [*starts[1:4], len(data)], strict=False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    archive.commit(ingest)
    assert archive.files() == {str(n): member for n, member in enumerate(members)}


# -- going on after an end


def test_a_lost_header_costs_itself_and_not_what_lies_behind_it(store: Store) -> None:
    data = file(b"a", WEIGHTS) + END
    archive = Archive(store, data)
    ingest = archive.open()
    feed(ingest, data[: 2 * MEGABYTE])
    ingest.close()
    rest = ingest.directory / "layer" / "rest"
    with rest.open("r+b") as damaged:
        damaged.write(b"\xff" * 100)
    ingest = archive.open()
    assert ingest.missing == ((0, writers.PIECE_BYTES), (2 * MEGABYTE, len(data)))
    assert ingest.front == 0
    feed(ingest, data)
    archive.commit(ingest)
    assert archive.files() == {"a": WEIGHTS}


def test_a_damaged_member_is_fetched_again_where_it_is_damaged(store: Store) -> None:
    archive = Archive(store, MIXED)
    ingest = archive.open()
    feed(ingest, MIXED)
    ingest.close()
    largest = max((ingest.directory / "layer" / "files").iterdir(), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as damaged:
        damaged.seek(2 * MEGABYTE)
        damaged.write(b"\xff")
    ingest = archive.open()
    ((first, last),) = ingest.missing
    assert last - first <= MEGABYTE
    feed(ingest, MIXED)
    archive.commit(ingest)
    assert archive.files()[LONG] == WEIGHTS


@pytest.mark.parametrize("name", ["512", "0", "99999999", "x", "01"])
def test_files_that_nobody_vouches_for_are_no_obstacle(store: Store, name: str) -> None:
    archive = Archive(store, MIXED)
    files = store.root / "ingest" / ingests.name(archive.digest, SCOPE, ingests.UNPACKED) / "layer" / "files"
    files.mkdir(parents=True)
    (files / name).write_bytes(b"of somebody else")
    ingest = archive.open()
    assert ingest.missing == ((0, len(MIXED)),)
    feed(ingest, MIXED)
    archive.commit(ingest)
    assert archive.files()["d/config.json"] == b"{}"


def test_headers_that_come_with_other_bytes_than_before_end_it(store: Store) -> None:
    data = file(b"a", WEIGHTS) + END
    archive = Archive(store, data)
    ingest = archive.open()
    feed(ingest, data[: 2 * MEGABYTE])
    ingest.close()
    (ingest.directory / "layer" / "rest").write_bytes(b"")
    ingest = archive.open()
    with pytest.raises(IntegrityError, match="other bytes than at an earlier attempt"), ingest.writer(0) as writer:
        writer.append(memoryview(file(b"a", bytes(600))))
    ingest.close()
    assert archive.open().missing == ((0, len(data)),)  # it is begun anew


def test_what_a_layer_holds_is_read_from_the_bytes_that_were_verified(store: Store) -> None:
    """Another header came first, and was written over when the disk had failed in between."""
    data = file(b"good", b"content") + END
    archive = Archive(store, data)
    ingest = archive.open()
    archive.scatter.write(memoryview(file(b"evil", b"content")), 0)
    feed(ingest, data)
    archive.commit(ingest)
    assert archive.files() == {"good": b"content"}


def test_a_layer_that_is_not_what_its_headers_say_is_no_layer(store: Store) -> None:
    data = file(b"a", b"content") + END
    archive = Archive(store, data)
    ingest = archive.open()
    archive.scatter.write(memoryview(file(b"a", b"more content")), 0)
    feed(ingest, data)
    with pytest.raises(IntegrityError):
        archive.scatter.finish()
    ingest.discard()


# -- the disk


def test_many_small_members_are_synced_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(file(b"%d" % n, content(100 + n, str(n))) for n in range(300)) + END
    archive = Archive(store, data)
    ingest = archive.open()
    with recorded(monkeypatch, store.root) as calls:
        feed(ingest, data)
        ingest.flush()
        checkpoint = len(calls)
        archive.commit(ingest)
    assert calls[0] == "syncfs"
    assert checkpoint < 8
    assert calls.count("syncfs") == 2
    assert len(calls) < 20


def test_few_members_are_synced_one_by_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(store, file(b"a", WEIGHTS) + END)
    ingest = archive.open()
    name = ingest.directory.relative_to(store.root)
    with recorded(monkeypatch, store.root) as calls:
        feed(ingest, archive.data)
        ingest.flush()
    synced = {f"fdatasync {name}/layer/rest 600", f"fdatasync {name}/layer/files/512 600"}
    assert set(calls[:2]) == synced
    assert calls[2:] == [
        f"fsync {name}/layer/files/",
        f"fsync {name}/layer/",
        f"fdatasync {name}/journal 600",
        f"fsync {name}/",
        "fsync ingest/",
    ]
    ingest.close()


def test_large_members_are_handed_to_the_disk_while_they_grow(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, int]] = []
    monkeypatch.setattr(disk, "sync_range", lambda fd, offset, length: started.append((offset, length)))
    data = file(b"a", content(40 * MEGABYTE)) + END
    ingest = Archive(store, data, unpack.Limits(bytes=len(data), entries=1)).open()
    feed(ingest, data)
    assert sum(length for _, length in started) > 30 * MEGABYTE
    ingest.discard()


@pytest.mark.mount
def test_the_bytes_go_to_the_disk_once(tmp_path: Path) -> None:
    data = file(b"a", content(24 * MEGABYTE, "a")) + file(b"b", content(24 * MEGABYTE, "b")) + END
    with powered(tmp_path, 200 << 20) as cuttable:
        store = Store(cuttable.path / "store")
        before = dirtied()
        scattered(store, data, unpack.Limits(bytes=len(data), entries=9))
        assert len(data) * 0.99 <= dirtied() - before <= len(data) * 1.05


def dirtied() -> int:
    """Bytes that this process has made the kernel write (man 5 proc_pid_io, write_bytes)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


@pytest.mark.mount
@pytest.mark.parametrize("flag", [JOURNAL_ONLY, NOTHING], ids=["journal without data", "nothing flushed"])
def test_a_power_cut_takes_what_no_checkpoint_covered(tmp_path: Path, flag: int) -> None:
    parts = [file(b"%02d" % n, content(50_000 + n, str(n))) for n in range(60)]
    data = b"".join(parts) + file(b"w", WEIGHTS) + END
    with powered(tmp_path) as cuttable:
        archive = Archive(Store(cuttable.path / "store"), data)
        ingest = archive.open()
        covered = len(data) - 2 * MEGABYTE
        feed(ingest, data, covered, killed=True)
        ingest.flush()
        feed(ingest, data, covered + MEGABYTE, killed=True)
        cuttable.cut(flag)
        ingest.close()
        cuttable.return_power()
        ingest = archive.open()
        assert ingest.offset >= covered
        assert_right(ingest, data)
        feed(ingest, data)
        layer = archive.commit(ingest)
        cuttable.cut(flag)
        cuttable.return_power()
        assert oracle.scattered(layer) == archive.digest.hex
        assert archive.files()["w"] == WEIGHTS


@pytest.mark.mount
def test_a_full_disk_keeps_what_is_there_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    data = file(b"a", WEIGHTS) + file(b"b", content(3 * MEGABYTE, "b")) + END
    with mounted(tmp_path / "small", "tmpfs", "size=8m") as small:
        (small / "ballast").write_bytes(bytes(4 * MEGABYTE))
        archive = Archive(Store(small / "store"), data)
        ingest = archive.open()
        with pytest.raises(NoSpace):
            feed(ingest, data)
        ingest.close()
        (small / "ballast").unlink()
        ingest = archive.open()
        assert ingest.offset >= 2 * MEGABYTE
        feed(ingest, data)
        archive.commit(ingest)
        assert archive.files() == {"a": WEIGHTS, "b": content(3 * MEGABYTE, "b")}


@pytest.mark.mount
def test_the_inodes_of_the_node_are_left_alone(tmp_path: Path) -> None:
    data = b"".join(file(b"%d" % n, b"x") for n in range(300)) + END
    with mounted(tmp_path / "small", "tmpfs", "size=8m,nr_inodes=300") as small:
        limits = unpack.Limits(bytes=MEGABYTE, entries=1000, free_bytes=1)
        ingest = Archive(Store(small / "store"), data, limits).open()
        with pytest.raises(NoSpace, match="of 300 inodes free"):
            feed(ingest, data)
        ingest.close()


def test_a_link_in_the_way_is_not_followed(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    archive = Archive(store, MIXED)
    ingest = archive.open()
    os.symlink(victim, ingest.directory / "layer" / "files" / "1024")
    with pytest.raises(Internal):
        feed(ingest, MIXED)
    ingest.close()
    assert victim.read_bytes() == b"untouched"
