"""An archive unpacked while it arrives: never ahead of its hasher, never more than its digest allows."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelmount.config import Limits
from modelmount.content import ingest as ingests
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, Cancelled
from modelmount.formats.base import Encoding
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.pull import hashing
from modelmount.pull.fetch import Cancel
from modelmount.pull.hashing import Behind, Follower
from modelmount.pull.plan import Part
from modelmount.pull.unpacking import Unpacking
from tests.fakes import push

SCOPE = "0" * 32
SECONDS = 60.0


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    """A gzipped tar of 6 MB that doesn't compress: large enough for a hasher of its own."""
    big = tmp_path / "big.bin"
    big.write_bytes(hashlib.shake_128(b"big").digest(6 << 20))
    small = tmp_path / "small.json"
    small.write_bytes(b"{}")
    return push.compress(push.tar_of([("small.json", small), ("big.bin", big)]), "tar+gzip")


class Bench:
    """An ingest whose bytes a test lets arrive."""

    def __init__(self, directory: Path, archive: bytes) -> None:
        self.archive = archive
        self.store = Store(directory / "store")
        self.descriptor = Descriptor("application/x", Digest.of(archive), len(archive))
        self.part = Part(self.descriptor, Encoding.TAR_GZIP)
        name = "ingest-" + ingests.name(self.descriptor.digest, SCOPE, ingests.UNPACKED)
        held = self.store.lock(name).acquire(timeout=0)
        self.ingest = Ingest.open(self.store, self.descriptor.digest, len(archive), SCOPE, ingests.UNPACKED, held)
        self.follower = Follower(self.ingest.read_into, self.descriptor.digest, len(archive))
        self.cancel = Cancel()

    def arrive(self, end: int) -> None:
        with self.ingest.writer(self.ingest.offset) as writer:
            writer.append(memoryview(self.archive)[writer.offset : end])
        self.follower.advance(self.ingest.offset)

    def unpacking(self, limits: Limits | None = None) -> Unpacking:
        return Unpacking(
            self.ingest,
            self.part,
            lambda cancel: Behind(self.ingest.path, len(self.archive), self.follower, cancel),
            limits or Limits(free_bytes=0),
            self.cancel,
        )


@pytest.fixture
def bench(tmp_path: Path, archive: bytes) -> Iterator[Bench]:
    made = Bench(tmp_path, archive)
    yield made
    made.follower.stop()
    made.ingest.close()


def test_members_are_there_before_the_archive_is(bench: Bench) -> None:
    unpacking = bench.unpacking()
    bench.arrive(5 << 20)
    first = unpacking.layer / "files" / "0"
    while not (first.exists() and first.read_bytes() == b"{}"):
        threading.Event().wait(0.01)
    assert not (unpacking.layer / "index.json").exists()
    bench.arrive(len(bench.archive))
    layer = unpacking.finish()
    assert bench.follower.finish() == bench.descriptor.digest.hex
    assert (layer / "files" / "1").stat().st_size == 6 << 20
    assert (layer / "index.json").exists()


def test_the_reader_waits_for_the_hasher(bench: Bench) -> None:
    bench.arrive(hashing.READ_BYTES // 2)
    path, size = bench.ingest.path, len(bench.archive)
    with closing(Behind(path, size, bench.follower, lambda: True)) as stream, pytest.raises(Cancelled):
        stream.limit(0)
    bench.arrive(2 * hashing.READ_BYTES)
    with closing(Behind(path, size, bench.follower, lambda: False)) as stream:
        assert 0 < stream.limit(0) <= 2 * hashing.READ_BYTES
        assert stream.limit(hashing.READ_BYTES // 2) > hashing.READ_BYTES // 2
        assert stream.position == hashing.READ_BYTES // 2
        assert os.pread(stream.fileno(), 100, 0) == bench.archive[:100]


def test_stopping_leaves_nothing_and_no_thread(bench: Bench) -> None:
    unpacking = bench.unpacking()
    bench.arrive(5 << 20)
    unpacking.stop()
    assert not unpacking.layer.exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("unpack-")]
    unpacking.stop()


def test_a_cancelled_pull_ends_a_waiting_unpacker(bench: Bench) -> None:
    unpacking = bench.unpacking()
    bench.arrive(1 << 20)
    bench.cancel.set()
    with pytest.raises(Cancelled):
        unpacking.finish()
    assert not unpacking.layer.exists()


def test_a_verdict_of_the_bytes_names_the_archive(bench: Bench) -> None:
    unpacking = bench.unpacking(Limits(archive_entries=1, free_bytes=0))
    bench.arrive(len(bench.archive))
    with pytest.raises(BadArtifact, match=str(bench.descriptor.digest)):
        unpacking.finish()
    assert not unpacking.layer.exists()


def test_what_a_killed_driver_left_half_unpacked_is_no_obstacle(bench: Bench) -> None:
    half_made = bench.ingest.directory / "layer" / "files"
    half_made.mkdir(parents=True)
    (half_made / "0").write_bytes(os.urandom(10))
    unpacking = bench.unpacking()
    bench.arrive(len(bench.archive))
    assert (unpacking.finish() / "files" / "0").read_bytes() == b"{}"
