"""Unpacking by a process of its own: it comes to the same as doing it here, and what the process says or leaves when it
was taken over counts for nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelmount.errors import BadArtifact, Cancelled, Internal, NoSpace, UnpackingFailed
from modelmount.formats.base import Encoding
from modelmount.oci.digest import Digest
from modelmount.snapshots import decompress, isolated, layers, talk, unpack
from modelmount.snapshots.isolated import Whole
from modelmount.system import atomic, seccomp, workers
from modelmount.system.workers import Helper
from tests.fakes.archives import COMPRESS, END, directory, file, header, long_name
from tests.unit.system import processes
from tests.unit.system.processes import mounted

from . import rogue
from .archives import LIMITS, Directory

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROOT = Path(__file__).parents[3]
GOOD = (
    directory(b"d") + file(b"d/a", b"one") + file(b"b", b"") + file(b"c", hashlib.shake_128(b"c").digest(300_000)) + END
)
PACKED = gzip.compress(GOOD, mtime=0)
SECONDS = 60.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, so that the process becomes somebody else")


class Place:
    """Where archives are unpacked by processes of their own, with a neighbour."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.neighbour = path / "neighbour"
        self.neighbour.mkdir()
        (self.neighbour / "0").write_bytes(b"untouched")

    def build(self, data: bytes, encoding: Encoding, limits: unpack.Limits = LIMITS, name: str = "layer") -> Path:
        """The layer of these bytes."""
        blob = self.path / f"{name}.blob"
        blob.write_bytes(data)
        with closing(Whole(blob)) as stream:
            layers.build(stream, encoding, self.path / name, limits, lambda: False)
        return self.path / name

    def is_clean(self) -> bool:
        """Nothing is left but blobs, and the neighbour."""
        names = {path.name for path in self.path.iterdir() if path.suffix != ".blob"}
        return names == {"neighbour"} and (self.neighbour / "0").read_bytes() == b"untouched"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def _rogues() -> Iterator[Helper]:
    helper = Helper("tests.unit.snapshots.rogue", ROOT)
    yield helper
    helper.close()


@pytest.fixture
def rogues(_rogues: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "helper", _rogues)


@pytest.mark.parametrize("encoding", [Encoding.TAR_GZIP, Encoding.TAR_ZSTD, Encoding.ROOTFS_TAR_GZIP])
def test_it_comes_to_the_same_as_unpacking_here(place: Place, tmp_path: Path, encoding: Encoding) -> None:
    (tmp_path / "here").mkdir()
    here = Directory(tmp_path / "here")
    expected = here.unpack(COMPRESS[encoding](GOOD), encoding)
    layer = place.build(COMPRESS[encoding](GOOD), encoding)
    for member in expected:
        if member.is_file:
            name = str(member.number)
            assert (layer / "files" / name).read_bytes() == (here.files / name).read_bytes()
    assert {path.name for path in (layer / "files").iterdir()} == here.names()
    layers.write_index(tmp_path, expected)
    assert (layer / "index.json").read_bytes() == (tmp_path / "index.json").read_bytes()


@pytest.mark.parametrize("encoding", [Encoding.RAW_GZIP, Encoding.RAW_ZSTD])
def test_a_compressed_file_is_unpacked_so_too(place: Place, encoding: Encoding) -> None:
    assert (place.build(COMPRESS[encoding](b"a file"), encoding) / "files" / "0").read_bytes() == b"a file"


def test_what_was_made_is_ours_alone_and_read_only(place: Place) -> None:
    files = place.build(PACKED, Encoding.TAR_GZIP) / "files"
    assert stat.S_IMODE(files.stat().st_mode) == 0o700
    for path in (files, *files.iterdir()):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
        assert path == files or (stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o444)
        assert path == files or status.st_mtime == atomic.AGELESS


def test_names_that_are_no_text_come_through_from_an_image(place: Place) -> None:
    name = b"\xff" * 99
    data = file(name) + header(b"l", kind=b"2", link=b"\xfe/../..") + header(b"h", kind=b"1", link=name) + END
    layer = place.build(gzip.compress(data), Encoding.ROOTFS_TAR_GZIP)
    assert (layer / "index.json").read_text().count("\\\\xff") == 2 * 99


def test_many_members_take_many_messages(place: Place) -> None:
    data = b"".join(file(b"d/" + b"n" * 80 + b"%d" % n, b"%d" % n) for n in range(500)) + END
    layer = place.build(gzip.compress(data), Encoding.TAR_GZIP)
    assert sum(int(path.read_bytes()) for path in (layer / "files").iterdir()) == sum(range(500))


def test_the_largest_window_fits_into_its_memory(place: Place) -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: decompress.ZSTD_WINDOW_LOG})
    data = b"".join((compressor.compress(file(b"a", bytes(8 << 20)) + END), compressor.flush()))
    assert (place.build(data, Encoding.TAR_ZSTD) / "files" / "0").stat().st_size == 8 << 20


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(gzip.compress(file(b"../x") + END, mtime=0), id="a name out of the directory"),
        pytest.param(gzip.compress(header(b"l", kind=b"2", link=b"/etc") + END, mtime=0), id="a link"),
        pytest.param(gzip.compress(header(b"dev", kind=b"3") + END, mtime=0), id="a device"),
        pytest.param(PACKED[:-9], id="cut off"),
        pytest.param(PACKED + b"more", id="something behind it"),
        pytest.param(b"no gzip at all", id="no gzip"),
    ],
)
def test_a_verdict_is_the_same_as_here(place: Place, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "neighbour" / "here").mkdir()
    with pytest.raises(BadArtifact) as here:
        Directory(tmp_path / "neighbour" / "here").unpack(data, Encoding.TAR_GZIP)
    with pytest.raises(BadArtifact) as there:
        place.build(data, Encoding.TAR_GZIP)
    assert there.value.message == here.value.message
    assert place.is_clean()


def test_a_bomb_stops_at_what_its_size_allows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "FREE_EXPANSION_BYTES", 100_000)
    limits = unpack.Limits(bytes=1 << 40, entries=10, expansion=2)
    with pytest.raises(BadArtifact, match=r"over 2 times its size \(limits.expansion\)"):
        place.build(gzip.compress(file(b"a", bytes(100_001)) + END), Encoding.TAR_GZIP, limits)
    assert place.is_clean()
    layer = place.build(gzip.compress(file(b"a", bytes(100_000)) + END), Encoding.TAR_GZIP, limits)
    assert (layer / "files" / "0").stat().st_size == 100_000


@pytest.mark.mount
def test_a_full_disk_is_no_verdict(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", "size=4m") as small:
        place = Place(small)
        data = gzip.compress(file(b"a", hashlib.shake_128(b"a").digest(3 << 20)) + END)
        with pytest.raises(OSError) as caught:
            place.build(data, Encoding.TAR_GZIP)
        assert caught.value.errno == 28
        with pytest.raises(NoSpace, match="must stay"):
            place.build(data, Encoding.TAR_GZIP, unpack.Limits(bytes=1 << 30, entries=5, free_bytes=1 << 30))
        assert place.is_clean()


# -- processes that were taken over


@needs_root
@pytest.mark.usefixtures("rogues")
@pytest.mark.parametrize("trick", sorted(rogue.TRICKS))
def test_the_word_and_the_files_of_a_process_that_was_taken_over_count_nothing(place: Place, trick: int) -> None:
    encoding = Encoding.TAR_GZIP if trick < rogue.ROOTFS else Encoding.ROOTFS_TAR_GZIP
    with pytest.raises(UnpackingFailed) as caught:
        place.build(PACKED, encoding, unpack.Limits(bytes=trick, entries=5))
    assert not (place.path / "layer").exists()
    assert caught.value.message.startswith("the process that unpacks it ")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


@needs_root
@pytest.mark.usefixtures("rogues")
@pytest.mark.parametrize(
    ("trick", "said"),
    [(152, "SIGSEGV"), (154, "SIGSYS"), (155, "SIGXCPU"), (156, "SIGKILL"), (150, "status 0"), (146, "boom")],
)
def test_how_it_ended_is_said(place: Place, trick: int, said: str) -> None:
    with pytest.raises(UnpackingFailed, match=said):
        place.build(PACKED, Encoding.TAR_GZIP, unpack.Limits(bytes=trick, entries=5))


@needs_root
def test_after_one_that_was_taken_over_the_next_archive_is_fine(
    place: Place, monkeypatch: pytest.MonkeyPatch, _rogues: Helper
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(talk, "helper", _rogues)
        with pytest.raises(UnpackingFailed):
            place.build(PACKED, Encoding.TAR_GZIP, unpack.Limits(bytes=152, entries=5))
    assert (place.build(PACKED, Encoding.TAR_GZIP) / "files" / "1").read_bytes() == b"one"


def test_without_a_process_nothing_is_unpacked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = Helper("tests.unit.snapshots.absent", ROOT)
    monkeypatch.setattr(talk, "helper", helper)
    try:
        with pytest.raises(Internal, match="modelmount doctor"):
            place.build(PACKED, Encoding.TAR_GZIP)
    finally:
        helper.close()
    assert place.is_clean()


# -- processes that are ended


class Slow:
    """A stream that lets its reader have the first bytes only, until it is told to go on."""

    def __init__(self, path: Path) -> None:
        self._whole = Whole(path)
        self.size = self._whole.size
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.cancelled = False

    def fileno(self) -> int:
        return self._whole.fileno()

    def limit(self, position: int) -> int:
        if not position:
            return 1000
        self.asked.set()
        while not self.go_on.wait(0.01):
            if self.cancelled:
                raise Cancelled("stopped")
        return self.size

    def close(self) -> None:
        self._whole.close()


class Building:
    """A layer that is built in a thread from a slow stream."""

    def __init__(self, place: Place, name: str) -> None:
        blob = place.path / f"{name}.blob"
        blob.write_bytes(PACKED)
        self.stream, self.layer = Slow(blob), place.path / name
        self.error: Exception | None = None
        before = children(talk.helper)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self.stream.asked.wait(SECONDS)
        (self.pid,) = children(talk.helper) - before

    def _run(self) -> None:
        try:
            with closing(self.stream):
                layers.build(self.stream, Encoding.TAR_GZIP, self.layer, LIMITS, lambda: self.stream.cancelled)
        except Exception as e:  # noqa: BLE001 - the test asks for it
            self.error = e

    def end(self) -> Exception | None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.error


def children(helper: Helper) -> set[int]:
    """The processes that a helper has at the moment."""
    if helper.pid is None:
        return set()
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if fields[1] == str(helper.pid):
            found.add(int(path.parent.name))
    return found


def test_one_that_is_killed_fails_its_own_archive_only(place: Place) -> None:
    one, other = Building(place, "one"), Building(place, "other")
    os.kill(one.pid, signal.SIGKILL)
    for each in (one, other):
        each.stream.go_on.set()
    assert isinstance(error := one.end(), UnpackingFailed)
    assert "SIGKILL" in error.message
    assert other.end() is None
    assert (other.layer / "files" / "1").read_bytes() == b"one"
    assert not one.layer.exists()


def test_a_killed_helper_fails_what_is_under_way_and_nothing_later(place: Place) -> None:
    building = Building(place, "one")
    helper = talk.helper.pid
    assert helper is not None
    os.kill(helper, signal.SIGKILL)
    building.stream.go_on.set()
    assert isinstance(building.end(), UnpackingFailed)
    assert (place.build(PACKED, Encoding.TAR_GZIP) / "files" / "1").read_bytes() == b"one"


def test_one_that_is_cancelled_is_gone_at_once(place: Place) -> None:
    building = Building(place, "one")
    building.stream.cancelled = True
    assert isinstance(building.end(), Cancelled)
    assert not Path(f"/proc/{building.pid}").exists()
    assert not building.layer.exists()


@pytest.mark.mount
@pytest.mark.usefixtures("rogues")
def test_one_that_fills_the_disk_is_ended_where_a_share_must_stay(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", "size=64m") as small:
        place = Place(small)
        limits = unpack.Limits(bytes=rogue.FILLS, entries=5, free_bytes=32 << 20)
        with pytest.raises(NoSpace, match="must stay"):
            place.build(PACKED, Encoding.TAR_GZIP, limits)
        assert place.is_clean()


@pytest.mark.usefixtures("rogues")
def test_one_that_does_nothing_for_too_long_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "SILENT_SECONDS", 0.0)
    with pytest.raises(UnpackingFailed, match="did nothing for"):
        place.build(PACKED, Encoding.TAR_GZIP, unpack.Limits(bytes=rogue.SLEEPS, entries=5))


DRIVER = """
import sys
from pathlib import Path
from modelmount.snapshots import talk
from tests.unit.snapshots.test_isolated import Building, Place
building = Building(Place(Path(sys.argv[1])), "one")
print(talk.helper.pid, building.pid, flush=True)
building.end()
"""


def test_nothing_outlives_a_killed_driver(tmp_path: Path) -> None:
    driver = processes.start(DRIVER, str(tmp_path))
    try:
        pids = [int(word) for word in processes.line(driver).split()]
        assert len(pids) == 2
        assert all(is_alive(pid) for pid in pids)
    finally:
        processes.stop(driver)
    deadline = time.monotonic() + SECONDS
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (tmp_path / "one" / "index.json").exists()


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie, whom nobody has waited for, doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@needs_root
def test_the_process_has_no_rights_while_it_reads(place: Place) -> None:
    building = Building(place, "one")
    try:
        text = Path(f"/proc/{building.pid}/status").read_text()
        limits = Path(f"/proc/{building.pid}/limits").read_text()
        for capabilities in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"):
            assert f"{capabilities}:\t{'0' * 16}\n" in text
        assert "NoNewPrivs:\t1\n" in text
        assert "Seccomp:\t2\n" in text or not seccomp.is_available()
        assert f"Max file size             {LIMITS.bytes} " in limits
        assert "Max core file size        0 " in limits
    finally:
        building.stream.go_on.set()
        assert building.end() is None


def test_the_digest_of_what_is_decompressed_is_compared_there(place: Place, tmp_path: Path) -> None:
    blob = tmp_path / "x.blob"
    blob.write_bytes(PACKED)
    with closing(Whole(blob)) as stream, pytest.raises(BadArtifact, match="where its manifest says"):
        layers.build(stream, Encoding.TAR_GZIP, tmp_path / "x", LIMITS, lambda: False, uncompressed=Digest.of(b"else"))
    with closing(Whole(blob)) as stream:
        layers.build(stream, Encoding.TAR_GZIP, tmp_path / "x", LIMITS, lambda: False, uncompressed=Digest.of(GOOD))


@pytest.mark.parametrize("encoding", [Encoding.TAR_GZIP, Encoding.TAR_ZSTD])
def test_without_landlock_the_rest_confines_it_and_lets_it_work(
    place: Place, monkeypatch: pytest.MonkeyPatch, encoding: Encoding
) -> None:
    helper = Helper("tests.unit.snapshots.without_landlock", ROOT)
    monkeypatch.setattr(talk, "helper", helper)
    data = file(b"a", os.urandom(3 << 20)) + file(b"b", bytes(5 << 20)) + END
    try:
        layer = place.build(COMPRESS[encoding](data), encoding, unpack.Limits(bytes=64 << 20, entries=10))
    finally:
        helper.close()
    assert {path.name for path in (layer / "files").iterdir()} == {"0", "1"}


def test_the_messages_of_the_longest_names_of_an_image_fit(place: Place) -> None:
    """A byte that is no UTF-8 is four characters of a name."""
    entries = [
        long_name(b"\xff" * 250 + b"/" + b"\xff" * 200 + f"{number:03}".encode()) + file(b"x", b"1")
        for number in range(80)
    ]
    data = gzip.compress(b"".join(entries) + END)
    assert (place.build(data, Encoding.ROOTFS_TAR_GZIP) / "files" / "79").exists()


def test_the_messages_of_the_longest_names_fit(place: Place) -> None:
    deep = "/".join(["n" * 63] * 15)
    entries = [long_name(f"{deep}/{n:03}".encode()) + file(b"x", b"1") for n in range(80)]
    assert len(b"".join(entries)) > workers.MESSAGE_BYTES // 2
    assert (place.build(gzip.compress(b"".join(entries) + END), Encoding.TAR_GZIP) / "files" / "79").exists()
