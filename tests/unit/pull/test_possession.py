"""A blob that is here for another repository: who has it gets it after 64 ranges, who hasn't gets nothing."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.config import Registry
from modelmount.content.backoff import Backoff
from modelmount.content.store import Store
from modelmount.errors import ModelMountError, NotFound, Unavailable
from modelmount.formats.base import Encoding
from modelmount.formats.selection import EVERYTHING
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.pull import possession
from modelmount.pull.fetch import Cancel
from modelmount.pull.plan import Part
from modelmount.sources.health import Health
from modelmount.sources.mirrored import MirroredSource
from modelmount.sources.throttled import Bandwidth, ThrottledSource
from tests.fakes.source import Fault, MemorySource
from tests.unit.pull.test_puller import ANONYMOUS, Bench, tree_of

SIZE = (9 << 20) + 4321
WEIGHTS = os.urandom(SIZE)
PART = Part(Descriptor("application/octet-stream", Digest.of(WEIGHTS), SIZE), Encoding.RAW)
OTHER = "0" * 32
MINE = "1" * 32


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store")
    made.put_document(WEIGHTS, Digest.of(WEIGHTS), OTHER)
    yield made


def left(store: Store, source: MemorySource, part: Part = PART) -> list[Part]:
    return possession.take_over(store, MINE, source, [part], Cancel())


def mine(store: Store) -> bool:
    return store.has_blob(PART.descriptor.digest, MINE)


def test_who_has_it_takes_it_over_after_so_many_ranges_beyond_the_head(store: Store) -> None:
    source = MemorySource(WEIGHTS)
    assert left(store, source) == []
    assert mine(store)
    offsets = [offset for _, offset in source.opens]
    assert len(offsets) == possession.RANGES
    assert len(set(offsets)) > possession.RANGES / 2  # chosen anew each time
    assert min(offsets) >= possession.HEAD_BYTES
    assert max(offsets) + possession.RANGE_BYTES <= SIZE


def test_who_lies_gets_nothing_and_is_not_believed_again_for_a_day(store: Store) -> None:
    liar = MemorySource()
    liar.blobs[PART.descriptor.digest] = bytes(SIZE)
    assert left(store, liar) == [PART]
    assert len(liar.opens) == 1
    assert not mine(store)
    honest = MemorySource(WEIGHTS)
    assert left(store, honest) == [PART]
    assert honest.opens == []
    assert not mine(store)
    assert possession.take_over(store, "2" * 32, honest, [PART], Cancel()) == []


def test_a_mirror_that_has_it_proves_nothing(store: Store) -> None:
    """It may serve whatever anybody brought, by digest alone."""
    mirror = MemorySource(WEIGHTS, name="mirror")

    def behind(registry: MemorySource) -> ThrottledSource:
        bar = functools.partial(Backoff, store)
        source = MirroredSource(registry, [mirror], Health(), lambda digest, name: bar(digest, MINE, name))
        return ThrottledSource(source, Bandwidth(1 << 40))

    assert possession.take_over(store, MINE, behind(MemorySource()), [PART], Cancel()) == [PART]
    assert not mine(store)
    assert possession.take_over(store, MINE, behind(MemorySource(WEIGHTS)), [PART], Cancel()) == []
    assert mirror.opens == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault(from_start=True),
        Fault(cut=100),
        Fault(cut=0),
        Fault(error=NotFound("gone")),
        Fault(error=Unavailable("down")),
    ],
)
def test_trouble_on_the_way_proves_nothing_and_bars_nobody(store: Store, fault: Fault) -> None:
    source = MemorySource(WEIGHTS)
    source.faults.extend([Fault()] * 9 + [fault])
    assert left(store, source) == [PART]
    assert not mine(store)
    assert left(store, source) == []


def test_a_cancelled_pull_proves_nothing(store: Store) -> None:
    cancel = Cancel()
    cancel.set()
    source = MemorySource(WEIGHTS)
    assert possession.take_over(store, MINE, source, [PART], cancel) == [PART]
    assert source.opens == []


@pytest.mark.parametrize(
    "part",
    [
        Part(Descriptor("x", PART.descriptor.digest, SIZE), Encoding.TAR),
        Part(Descriptor("x", PART.descriptor.digest, SIZE + 1), Encoding.RAW),
        Part(Descriptor("x", Digest.of(b"not here"), SIZE), Encoding.RAW),
    ],
    ids=["an archive", "another size", "not here"],
)
def test_what_cannot_be_compared_is_downloaded(store: Store, part: Part) -> None:
    source = MemorySource(WEIGHTS)
    assert left(store, source, part) == [part]
    assert source.opens == []


def test_small_blobs_are_downloaded(store: Store) -> None:
    small = os.urandom(1 << 20)
    store.put_document(small, Digest.of(small), OTHER)
    part = Part(Descriptor("x", Digest.of(small), len(small)), Encoding.RAW)
    assert left(store, MemorySource(small), part) == [part]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for puller in made.pullers:
        puller.stop(60)
    for client in made.clients:
        client.close()


@pytest.mark.parametrize(("sharing", "bytes_needed"), [("repository", SIZE), ("proof", 64 << 16)])
def test_only_registries_that_an_admin_lists_are_asked_for_proofs(
    bench: Bench, sharing: str, bytes_needed: int
) -> None:
    registries = {"registry.example.com": Registry(sharing=sharing)}  # type: ignore[arg-type]
    settings = type(bench.settings)(root=bench.settings.root, limits=bench.settings.limits, registries=registries)
    bench.store.put_document(WEIGHTS, Digest.of(WEIGHTS), OTHER)
    model = bench.model(("model.bin", WEIGHTS))
    root = tree_of(bench.puller(settings).ensure(model, EVERYTHING, ANONYMOUS))
    assert (root / "model.bin").read_bytes() == WEIGHTS
    opened = [offset for digest, offset in bench.source.opens if digest == PART.descriptor.digest]
    assert len(opened) == (1 if sharing == "repository" else possession.RANGES)


def test_naming_anothers_digest_without_its_bytes_yields_nothing(bench: Bench) -> None:
    registries = {"registry.example.com": Registry(sharing="proof")}
    settings = type(bench.settings)(root=bench.settings.root, limits=bench.settings.limits, registries=registries)
    bench.store.put_document(WEIGHTS, Digest.of(WEIGHTS), OTHER)
    model = bench.model(("model.bin", WEIGHTS))
    bench.source.blobs[PART.descriptor.digest] = bytes(SIZE)
    with pytest.raises(ModelMountError):
        tree_of(bench.puller(settings).ensure(model, EVERYTHING, ANONYMOUS))
    assert not bench.store.has_blob(PART.descriptor.digest, model.repository.scope)
    assert list((bench.store.root / "trees").iterdir()) == []
