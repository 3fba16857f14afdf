"""Headers of uncompressed archives are read by processes without rights, whose word is checked: one that was taken over
says nothing that is believed, and one that ends costs its own archive only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelmount.content import ingest as ingests
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, Cancelled, IntegrityError, Internal, UnpackingFailed
from modelmount.formats.base import Member
from modelmount.oci.digest import Digest
from modelmount.snapshots import headers, talk, unpack
from modelmount.snapshots.headers import Front, Way
from modelmount.snapshots.scatter import Scatter
from modelmount.snapshots.worker import Read
from modelmount.system import confine, disk, seccomp
from modelmount.system.workers import Helper
from tests.fakes.archives import END, directory, file, header, long_name
from tests.unit.content.downloads import SCOPE, assert_right, content, feed

from . import rogue
from .archives import LIMITS, headers_of

ROOT = Path(__file__).parents[3]
MEGABYTE = 1 << 20
SIZE = 8192
"""Of the archive that taken-over processes speak of."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, so that the process becomes somebody else")


@pytest.fixture(scope="module")
def _rogues() -> Iterator[Helper]:
    helper = Helper("tests.unit.snapshots.rogue", ROOT)
    yield helper
    helper.close()


@pytest.fixture
def rogues(_rogues: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "helper", _rogues)


def front(size: int, limits: unpack.Limits = LIMITS, *, cancelled: bool = False) -> closing[Front]:
    return closing(Front(size, limits, lambda: cancelled, rootfs=False, what="archive x"))


def read(data: bytes, limits: unpack.Limits = LIMITS, *, rootfs: bool = False) -> list[Member]:
    return headers.read_small(data, limits, lambda: False, rootfs=rootfs)


# -- what they say


def test_where_a_large_member_lies_is_known_from_its_header(store: Store) -> None:
    data = file(b"a", bytes(MEGABYTE)) + file(b"b", bytes(10)) + END
    with front(len(data)) as reading:
        second = 512 + MEGABYTE
        assert reading.feed(memoryview(data)) == Way([(512, second)], second, over=False)
        assert reading.feed(memoryview(data)[second:]) == Way([(second + 512, second + 522)], second + 1024, over=False)
        rest = memoryview(data)[second + 1024 :]
        while rest:
            way = reading.feed(rest)
            assert way is not None
            assert not way.over
            rest = memoryview(data)[way.position :]
        assert reading.members() == headers_of(data)
    assert reading.pid is None


def test_many_small_members_take_few_messages() -> None:
    data = b"".join(file(b"%d" % n, content(600, str(n))) for n in range(1000)) + END
    places: list[tuple[int, int]] = []
    messages = 0
    with front(len(data), unpack.Limits(bytes=MEGABYTE, entries=2000)) as reading:
        position = 0
        while position < len(data):
            way = reading.feed(memoryview(data)[position:])
            assert way is not None
            places += way.places
            position, messages = way.position, messages + 1
        assert reading.members() == headers_of(data, unpack.Limits(bytes=MEGABYTE, entries=2000))
    assert places == [(m.number, m.number + m.size) for m in headers_of(data, unpack.Limits(MEGABYTE, 2000))]
    assert messages < 40


def test_a_list_of_members_is_the_one_that_is_read_here() -> None:
    data = directory(b"d") + b"".join(file(b"d/%d" % n, content(n, str(n))) for n in range(100)) + END
    assert read(data) == headers_of(data)
    image = file(b"/a", b"1") + file(b"a", b"22") + header(b"b", kind=b"2", link=b"/etc") + END
    assert read(image, rootfs=True) == headers_of(image, rootfs=True)


def test_a_verdict_is_the_same_as_here() -> None:
    data = file(b"../x", b"1") + END
    with pytest.raises(BadArtifact) as here:
        headers_of(data)
    with pytest.raises(BadArtifact) as there:
        read(data)
    assert there.value.message == here.value.message


def test_a_file_in_memory_that_is_sealed_stays_as_it_is() -> None:
    fd = disk.sealed(b"headers")
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        assert os.pread(fd, 100, 0) == b"headers"
    finally:
        os.close(fd)


# -- what they may


def assert_has_no_rights(pid: int) -> None:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert status[capabilities] == ["0" * 16], capabilities
    assert status["Uid"] == status["Gid"] == [str(confine.user_of(pid))] * 4
    assert status["Groups"] == []
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == ["2"] or not seccomp.is_available()
    assert status["Threads"] == ["1"]


@needs_root
def test_who_follows_an_archive_has_no_rights_and_no_file() -> None:
    data = file(b"a", bytes(MEGABYTE)) + END
    with front(len(data)) as reading:
        reading.feed(memoryview(data))
        assert reading.pid is not None
        assert_has_no_rights(reading.pid)
        kinds = {os.readlink(path).partition(":")[0] for path in Path(f"/proc/{reading.pid}/fd").iterdir()}
        assert kinds == {"/dev/null", "socket"}


@needs_root
def test_who_reads_verified_headers_has_no_rights_and_cannot_change_them(tmp_path: Path) -> None:
    deep = b"/".join([b"n" * 63] * 12)
    data = b"".join(long_name(b"%b/%d" % (deep, n)) + file(b"x", b"1") for n in range(2000)) + END
    (tmp_path / "rest").write_bytes(data)
    limits = unpack.Limits(bytes=MEGABYTE, entries=2000)
    order = Read(len(data), limits, False, talk.bounds(len(data), limits))
    with (tmp_path / "rest").open("rb") as rest, talk.Talk(order, [rest.fileno()]) as reading:
        reading.hear(lambda: None, headers.SILENT_SECONDS)  # and then it waits, for nobody takes the next ones
        assert_has_no_rights(reading.pid)
        found = {os.readlink(path): path.name for path in Path(f"/proc/{reading.pid}/fd").iterdir()}
        assert {name.partition(":")[0] for name in found} == {"/dev/null", "socket", str(tmp_path / "rest")}
        flags = Path(f"/proc/{reading.pid}/fdinfo/{found[str(tmp_path / 'rest')]}").read_text().split()
        assert int(flags[flags.index("flags:") + 1], 8) & os.O_ACCMODE == os.O_RDONLY


# -- processes that were taken over


@needs_root
@pytest.mark.usefixtures("rogues")
@pytest.mark.parametrize("trick", sorted(rogue.MISLEADERS))
def test_where_members_lie_is_not_believed_of_one_that_was_taken_over(trick: int) -> None:
    with front(SIZE, unpack.Limits(bytes=trick, entries=5)) as reading:
        assert reading.feed(memoryview(bytes(SIZE))) is None
        assert reading.pid is None


@needs_root
@pytest.mark.usefixtures("rogues")
@pytest.mark.parametrize("trick", sorted(rogue.READERS))
def test_what_members_are_is_not_believed_of_one_that_was_taken_over(trick: int) -> None:
    with pytest.raises(UnpackingFailed) as caught:
        read(bytes(SIZE), unpack.Limits(bytes=trick, entries=5))
    assert caught.value.message.startswith("the process that unpacks it ")
    assert caught.value.message.isprintable()


@needs_root
@pytest.mark.usefixtures("rogues")
def test_one_that_was_killed_is_no_verdict() -> None:
    with front(SIZE, unpack.Limits(bytes=rogue.KILLED, entries=5)) as reading:
        with pytest.raises(UnpackingFailed, match=r"^archive x: .* was killed \(SIGKILL\)"):
            reading.feed(memoryview(bytes(SIZE)))
        assert reading.pid is None


@pytest.mark.usefixtures("rogues")
def test_one_that_does_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "SILENT_SECONDS", 0.0)
    with front(SIZE, unpack.Limits(bytes=rogue.SLEEPS, entries=5)) as reading:
        assert reading.feed(memoryview(bytes(SIZE))) is None
        assert reading.pid is None
    with pytest.raises(UnpackingFailed, match="did nothing for"):
        read(bytes(SIZE), unpack.Limits(bytes=rogue.SLEEPS, entries=5))


@pytest.mark.usefixtures("rogues")
def test_one_that_does_nothing_is_no_obstacle_to_a_stop() -> None:
    with front(SIZE, unpack.Limits(bytes=rogue.SLEEPS, entries=5), cancelled=True) as reading:
        with pytest.raises(Cancelled):
            reading.feed(memoryview(bytes(SIZE)))
        assert reading.pid is None


def test_without_a_process_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = Helper("tests.unit.snapshots.absent", ROOT)
    monkeypatch.setattr(talk, "helper", helper)
    try:
        with front(SIZE) as reading, pytest.raises(Internal, match="modelmount doctor"):
            reading.feed(memoryview(bytes(SIZE)))
        with pytest.raises(Internal, match="modelmount doctor"):
            read(bytes(SIZE))
    finally:
        helper.close()


# -- in an ingest


class Arriving:
    """An archive on its way into its members."""

    def __init__(self, store: Store, data: bytes, limits: unpack.Limits = LIMITS) -> None:
        self.store, self.data, self._limits = store, data, limits
        self.scatter: Scatter

    def open(self) -> Ingest:
        digest = Digest.of(self.data)
        held = self.store.lock("ingest-" + ingests.name(digest, SCOPE, ingests.UNPACKED)).acquire(timeout=0)
        size = len(self.data)
        return Ingest.open(self.store, digest, size, SCOPE, ingests.UNPACKED, held, body=self._body)

    def _body(self, directory: Path) -> Scatter:
        self.scatter = Scatter(directory / "layer", len(self.data), self._limits, what="archive x")
        return self.scatter


def test_one_that_is_killed_while_an_archive_arrives_costs_no_byte_that_did(store: Store) -> None:
    data = file(b"a", content(2 * MEGABYTE, "a")) + file(b"b", content(MEGABYTE, "b")) + END
    arriving = Arriving(store, data)
    ingest = arriving.open()
    feed(ingest, data, MEGABYTE)
    pid = arriving.scatter.reader
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UnpackingFailed, match=r"^archive x: the process that unpacks it was killed"):
        feed(ingest, data)
    ingest.close()
    ingest = arriving.open()
    assert ingest.offset >= 2 * MEGABYTE
    feed(ingest, data)
    assert [m.path for m in headers_of(data)] == ["a", "b"]
    arriving.scatter.finish()
    assert_right(ingest, data)
    ingest.discard()


@needs_root
@pytest.mark.parametrize("trick", [rogue.READING + 1, rogue.READING + 31])
def test_bytes_that_break_who_reads_them_are_judged_once_they_are_verified(
    store: Store, rogues: None, trick: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends them may have made them up: the digest decides first, and the verdict is another process's."""
    data = file(b"a", content(SIZE, "a")) + END
    arriving = Arriving(store, data, unpack.Limits(bytes=trick, entries=5))
    ingest = arriving.open()
    feed(ingest, data)
    assert_right(ingest, data)
    monkeypatch.undo()
    with pytest.raises(IntegrityError):  # its places weren't known
        arriving.scatter.finish()
    ingest.discard()


@needs_root
def test_what_lies_there_already_is_not_read_with_nobody_who_can(
    store: Store, _rogues: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = file(b"a", content(2 * MEGABYTE, "a")) + END
    arriving = Arriving(store, data)
    ingest = arriving.open()
    feed(ingest, data, MEGABYTE)
    ingest.close()
    monkeypatch.setattr(talk, "helper", _rogues)
    arriving = Arriving(store, data, unpack.Limits(bytes=rogue.READING + 31, entries=5))
    with pytest.raises(IntegrityError):
        arriving.open()
    monkeypatch.undo()
    assert Arriving(store, data).open().missing == ((0, len(data)),)


def test_nobody_is_left_when_a_download_ends(store: Store) -> None:
    data = file(b"a", content(2 * MEGABYTE, "a")) + END
    arriving = Arriving(store, data)
    ingest = arriving.open()
    feed(ingest, data, MEGABYTE)
    pid = arriving.scatter.reader
    assert pid is not None
    assert Path(f"/proc/{pid}").exists()
    ingest.close()
    assert not Path(f"/proc/{pid}").exists()


def test_two_archives_have_two_readers(store: Store) -> None:
    arrivals = [Arriving(store, file(b"a", content(2 * MEGABYTE, name)) + END) for name in "ab"]
    downloads = [arriving.open() for arriving in arrivals]
    for arriving, ingest in zip(arrivals, downloads, strict=True):
        feed(ingest, arriving.data, MEGABYTE)
    pids = {arriving.scatter.reader for arriving in arrivals}
    assert len(pids - {None}) == 2
    for ingest in downloads:
        ingest.discard()
