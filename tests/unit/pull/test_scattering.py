"""Uncompressed archives through a whole pull: one download, one write, in ranges, and nothing readable before it is
verified.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.config import Limits
from modelmount.content import ingest as ingests
from modelmount.content.backoff import Backoff
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, IntegrityError
from modelmount.formats.base import Encoding
from modelmount.formats.selection import EVERYTHING
from modelmount.oci.digest import Digest
from modelmount.pull.fetch import Cancel, Download, Line
from modelmount.pull.job import Waiter
from modelmount.pull.plan import Part
from modelmount.pull.progress import Counters, Progress
from modelmount.pull.unpacking import Scattering
from modelmount.snapshots import layers, unpack
from tests.fakes.source import Fault, MemorySource
from tests.faults import oracle

from .test_puller import ANONYMOUS, REPOSITORY, SECONDS, Bench, tree_of

MB = 1 << 20
SCOPE = REPOSITORY.scope
TAR = "application/vnd.cncf.model.weight.v1.tar"
WEIGHTS = hashlib.shake_128(b"weights").digest(5 * MB + 77)


def tar(*members: tuple[str, bytes], mtime: int = 0) -> bytes:
    """As a tool writes it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def layer_of(store: Store, archive: bytes) -> Path:
    return store.unpacked_path(Digest.of(archive), unpack.rules(Encoding.TAR))


def test_a_tar_of_each_file_becomes_the_files(bench: Bench) -> None:
    archives = [tar(("config.json", b"{}")), tar(("w/model.safetensors", WEIGHTS))]
    model = bench.model(*((f"{n}", data) for n, data in enumerate(archives)), media_type=TAR)
    root = tree_of(bench.puller().ensure(model, EVERYTHING, ANONYMOUS))
    assert (root / "config.json").read_bytes() == b"{}"
    assert (root / "w/model.safetensors").read_bytes() == WEIGHTS
    for data in archives:
        assert oracle.scattered(layer_of(bench.store, data)) == Digest.of(data).hex
        assert bench.opened()[Digest.of(data)] == 1
    assert oracle.faults(bench.store.root) == []
    assert list((bench.store.root / "ingest").iterdir()) == []


@pytest.mark.parametrize("at", [0, 130, 3 * MB], ids=["in a name", "in a size", "in the data"])
def test_wrong_bytes_are_the_source_s_fault_and_leave_nothing(bench: Bench, at: int) -> None:
    data = tar(("model.safetensors", WEIGHTS))
    model = bench.model((".", data), media_type=TAR)
    bench.source.faults.append(Fault(flip=at))
    with pytest.raises(IntegrityError, match="wrong bytes"):
        bench.puller().ensure(model, EVERYTHING, ANONYMOUS).wait(Waiter(), SECONDS)
    assert list((bench.store.root / "unpacked").iterdir()) == []
    assert list((bench.store.root / "ingest").iterdir()) == []
    assert not bench.store.has_scope(Digest.of(data), SCOPE)


def test_a_bad_archive_with_the_right_digest_is_a_verdict(bench: Bench) -> None:
    model = bench.model((".", tar(("../x", WEIGHTS))), media_type=TAR)
    with pytest.raises(BadArtifact, match="has the component"):
        bench.puller().ensure(model, EVERYTHING, ANONYMOUS).wait(Waiter(), SECONDS)
    assert list((bench.store.root / "unpacked").iterdir()) == []
    assert list((bench.store.root / "ingest").iterdir()) == []


def test_an_archive_that_is_here_as_a_blob_is_not_fetched_again(bench: Bench) -> None:
    data = tar(("a", WEIGHTS), ("b", b"b"))
    raw = bench.model(("archive.tar", data))
    puller = bench.puller()
    tree_of(puller.ensure(raw, EVERYTHING, ANONYMOUS))
    root = tree_of(puller.ensure(bench.model((".", data), media_type=TAR), EVERYTHING, ANONYMOUS))
    assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (WEIGHTS, b"b")
    assert bench.opened()[Digest.of(data)] == 1
    assert oracle.scattered(layer_of(bench.store, data)) == Digest.of(data).hex


def test_two_archives_may_hold_one_file_if_it_is_the_same(bench: Bench) -> None:
    one, same, other = (tar(("a", content), mtime=n) for n, content in enumerate((b"1", b"1", b"2")))
    puller = bench.puller()
    root = tree_of(puller.ensure(bench.model(("1", one), ("2", same), media_type=TAR), EVERYTHING, ANONYMOUS))
    assert (root / "a").read_bytes() == b"1"
    with pytest.raises(BadArtifact, match="two layers put different bytes at 'a'"):
        puller.ensure(bench.model(("1", one), ("3", other), media_type=TAR), EVERYTHING, ANONYMOUS).wait(
            Waiter(), SECONDS
        )


# -- ranges


class Divided:
    """A download of one archive whose segments a test hands out."""

    def __init__(self, store: Store, data: bytes) -> None:
        self.source = MemorySource()
        self.descriptor = self.source.put(data)
        part = Part(self.descriptor, Encoding.TAR)
        self.scattering = Scattering(part, Limits(free_bytes=0), Cancel())
        digest = self.descriptor.digest
        held = store.lock("ingest-" + ingests.name(digest, SCOPE, ingests.UNPACKED)).acquire(timeout=0)
        self.ingest = Ingest.open(store, digest, len(data), SCOPE, ingests.UNPACKED, held, body=self.scattering.body)
        backoff = Backoff(store, digest, SCOPE, self.source.name)
        self.download = Download(
            self.ingest, self.descriptor, self.source, backoff, Counters(Progress(), part.expected), Cancel()
        )
        self.line = Line()

    def take(self, length: int | None = None) -> tuple[int, int] | None:
        """Take a segment and fetch all of it; where it began and ended."""
        segment = self.download.take(length)
        if segment is None:
            return None
        self.download.fetch(segment, self.line)
        self.download.finish(segment)
        return segment.start, segment.end

    def finish(self) -> None:
        self.download.verify()
        self.ingest.commit_unpacked(self.scattering.finish(), unpack.rules(Encoding.TAR))
        self.download.close()


def test_idle_connections_begin_where_the_next_header_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    members = [(str(n), os.urandom(20 * MB + n)) for n in range(3)]
    data = tar(*members)
    second, third = 512 + 20 * MB, 512 + 20 * MB + 512 + 20 * MB + 512
    divided = Divided(store, data)
    download = divided.download
    first = download.take(None)
    assert first is not None
    assert not download.share(8 * MB)  # nobody knows yet what lies where
    assert download.take(None) is None
    divided.ingest.writer(0).append(memoryview(data)[:MB])
    first.position = MB
    assert download.share(8 * MB)  # within the first member, as in any blob
    assert first.end == 9 * MB
    behind = download.take(None)
    assert behind is not None
    assert download.share(16 * MB)  # as far as the first member goes, and no farther
    assert behind.end == second
    assert divided.take() == (second, len(data))
    assert divided.ingest.front > third
    for segment in (first, behind):
        download.fetch(segment, divided.line)
        download.finish(segment)
    assert [offset for _, offset in divided.source.opens] == [second, MB, 9 * MB]
    divided.finish()
    digest = Digest.of(data)
    found = layers.members(store, digest, unpack.rules(Encoding.TAR))
    source = f"{digest.hex}/{unpack.rules(Encoding.TAR)}"
    assert [
        (m.path, layers.source_path(store, f"{source}/{m.number}").read_bytes() == content)
        for m, (_, content) in zip(found, members, strict=True)
    ] == [("0", True), ("1", True), ("2", True)]


def test_a_share_that_ends_in_the_middle_of_a_member_keeps_nobody_from_its_beginning(tmp_path: Path) -> None:
    data = tar(*((str(n), os.urandom(6 * MB)) for n in range(4)))
    second = 512 + 6 * MB
    divided = Divided(Store(tmp_path / "store"), data)
    download = divided.download
    first = download.take(8 * MB)
    assert first is not None
    divided.ingest.writer(0).append(memoryview(data)[:MB])
    first.position = MB
    assert download.take(None) is None
    assert download.share(8 * MB)
    assert first.end == second
    assert divided.take() == (second, len(data))
    download.fetch(first, divided.line)
    download.finish(first)
    assert [offset for _, offset in divided.source.opens] == [second, MB]
    divided.finish()
    assert divided.ingest.store.unpacked_rules(Digest.of(data), SCOPE) is not None


def test_a_source_that_ignores_ranges_goes_on_with_what_is_there(tmp_path: Path) -> None:
    data = tar(("a", WEIGHTS), ("b", WEIGHTS))
    divided = Divided(Store(tmp_path / "store"), data)
    assert divided.take(MB) == (0, MB)
    divided.source.faults.append(Fault(from_start=True))
    assert divided.take() == (MB, len(data))
    divided.finish()
    assert divided.ingest.store.unpacked_rules(Digest.of(data), SCOPE) is not None
