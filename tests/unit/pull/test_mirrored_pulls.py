"""Pulls behind mirrors: wrong bytes of a mirror cost a second download and nothing else."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.config import Auth
from modelmount.content.backoff import Backoff
from modelmount.errors import IntegrityError
from modelmount.formats.selection import EVERYTHING
from modelmount.oci.digest import Digest
from modelmount.pull import verdicts
from modelmount.pull.job import Job, Waiter
from modelmount.pull.puller import Puller
from modelmount.pull.resolver import Resolver
from modelmount.registry.client import Client
from modelmount.sources.health import Health
from modelmount.sources.mirrored import MirroredSource
from tests.fakes.source import Fault, MemorySource
from tests.unit.pull.test_puller import ANONYMOUS, REPOSITORY, SECONDS, Bench, tree_of

WEIGHTS = os.urandom((3 << 20) + 77)
SMALL = b'{"model_type": "llama"}\n'


class MirroredBench(Bench):
    """The same, behind a mirror."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.mirror = MemorySource(name="mirror")
        self.health = Health()

    def puller(self) -> Puller:  # type: ignore[override]
        client = Client(self.settings)
        self.clients.append(client)
        made = Puller(
            self.store,
            Resolver(self.store, client, Auth(verification="never")),
            lambda model, credential, is_awaited: self.behind(),
            self.admission(),
            self.settings,
        )
        self.pullers.append(made)
        return made

    def behind(self) -> MirroredSource:
        self.mirror.blobs.update(self.source.blobs)
        return MirroredSource(
            self.source,
            [self.mirror],
            self.health,
            lambda digest, name: Backoff(self.store, digest, REPOSITORY.scope, name),
        )

    def pull(self, *layers: tuple[str, bytes], **options: str) -> Job:
        return self.puller().ensure(self.model(*layers, **options), EVERYTHING, ANONYMOUS)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[MirroredBench]:
    made = MirroredBench(tmp_path)
    yield made
    made.close()


def sources(bench: MirroredBench) -> list[dict[str, int]]:
    """What is noted of who sent each model."""
    return [verdicts.sources(bench.store, hex_digits) for hex_digits, _ in verdicts.pulled_models(bench.store)]


def test_a_mirror_that_is_well_spares_the_registry(bench: MirroredBench) -> None:
    root = tree_of(bench.pull(("model.bin", WEIGHTS), ("config.json", SMALL)))
    assert (root / "model.bin").read_bytes() == WEIGHTS
    assert (root / "config.json").read_bytes() == SMALL
    assert bench.source.opens == []
    assert sources(bench) == [{"mirror": len(WEIGHTS) + len(SMALL)}]


@pytest.mark.parametrize("content", [WEIGHTS, SMALL], ids=["large", "small"])
def test_wrong_bytes_of_a_mirror_are_fetched_again_from_the_registry(bench: MirroredBench, content: bytes) -> None:
    bench.mirror.faults.extend([Fault(flip=3)] * 8)
    job = bench.pull(("model.bin", content))
    root = tree_of(job)
    assert (root / "model.bin").read_bytes() == content
    assert bench.source.opens
    assert {path.name.rpartition("-")[2] for path in (bench.store.root / "backoff").iterdir()} == {"mirror.json"}
    assert job.snapshot().bytes_done == job.snapshot().bytes_total


def test_an_archive_that_a_mirror_damaged_is_unpacked_from_the_right_bytes(bench: MirroredBench) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("weights.bin")
        member.size = len(WEIGHTS)
        tar.addfile(member, io.BytesIO(WEIGHTS))
    bench.mirror.faults.extend([Fault(flip=700)] * 8)
    job = bench.pull(("weights.tar", archive.getvalue()), media_type="application/vnd.cncf.model.weight.v1.tar")
    (weights,) = [path for path in tree_of(job).rglob("*") if path.is_file()]
    assert weights.read_bytes() == WEIGHTS


def test_wrong_bytes_of_all_are_the_registrys_fault(bench: MirroredBench) -> None:
    bench.mirror.faults.extend([Fault(flip=3)] * 8)
    bench.source.faults.extend([Fault(flip=3)] * 8)
    job = bench.pull(("model.bin", WEIGHTS))
    with pytest.raises(IntegrityError, match=r"registry\.example\.com served wrong bytes"):
        job.wait(Waiter(), SECONDS)
    assert len(list((bench.store.root / "backoff").iterdir())) == 2


def test_a_mirror_that_breaks_off_costs_no_byte_twice(bench: MirroredBench) -> None:
    bench.mirror.faults.append(Fault(cut=len(WEIGHTS) // 2))
    root = tree_of(bench.pull(("model.bin", WEIGHTS)))
    assert (root / "model.bin").read_bytes() == WEIGHTS
    assert [offset for _, offset in bench.source.opens] == [len(WEIGHTS) // 2]
    half = len(WEIGHTS) // 2
    assert sources(bench) == [{"mirror": half, bench.source.name: len(WEIGHTS) - half}]


def test_a_mirror_has_no_more_connections_than_it_may_and_the_registry_serves_the_rest(bench: MirroredBench) -> None:
    weights = [os.urandom(2 << 20) for _ in range(4)]
    mirror = bench.mirror
    bench.health = Health(places={"mirror": threading.Semaphore(1)})
    elsewhere = threading.Event()

    def until_another_came(digest: Digest, position: int) -> None:
        if len(mirror.blobs[digest]) == len(weights[0]):
            elsewhere.wait(SECONDS)

    def came(digest: Digest, position: int) -> None:
        elsewhere.set()

    bench.mirror.gate, bench.source.gate = until_another_came, came
    root = tree_of(bench.pull(*((f"model-{n}.bin", data) for n, data in enumerate(weights))))
    assert [(root / f"model-{n}.bin").read_bytes() for n in range(4)] == weights
    assert mirror.most_open == 1
    assert mirror.open_now == 0
    assert elsewhere.is_set()
