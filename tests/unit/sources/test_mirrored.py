"""A registry behind mirrors: order, fallback in the middle, health, blame; only the registry's word is final."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter

import pytest

from modelmount.errors import Cancelled, Forbidden, IntegrityError, NotFound, Unauthenticated, Unavailable
from modelmount.oci.digest import Digest
from modelmount.sources.health import FIRST_SECONDS, Health
from modelmount.sources.mirrored import MirroredSource
from tests.conformance.blob_source import DATA, descriptor, received
from tests.fakes.source import Fault, MemorySource

BLOB = descriptor(DATA)
OTHER = descriptor(b"another blob")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bars:
    """The store's memory of wrong bytes, without its store."""

    def __init__(self) -> None:
        self.standing: Counter[tuple[str, Digest]] = Counter()

    def of(self, digest: Digest, name: str) -> _Bar:
        return _Bar(self, (name, digest))


class _Bar:
    def __init__(self, bars: Bars, key: tuple[str, Digest]) -> None:
        self._bars, self._key = bars, key

    def check(self) -> None:
        if self._bars.standing[self._key]:
            raise IntegrityError("wrong before")

    def punish(self, reason: str) -> None:
        assert reason
        self._bars.standing[self._key] += 1


class Bench:
    """Two mirrors and a registry with the same two blobs."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.health = Health(self.clock)
        self.bars = Bars()
        self.near, self.far, self.origin = (
            MemorySource(DATA, b"another blob", name=name) for name in ("near", "far", "registry.example.com")
        )

    def source(self) -> MirroredSource:
        """As a job has it."""
        return MirroredSource(self.origin, [self.near, self.far], self.health, self.bars.of)

    def opens(self) -> tuple[int, int, int]:
        return len(self.near.opens), len(self.far.opens), len(self.origin.opens)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_mirror_serves_while_it_can(bench: Bench) -> None:
    source = bench.source()
    assert source.name == "registry.example.com"
    for _ in range(3):
        assert received(source.open(BLOB, 0)) == DATA
    assert bench.opens() == (3, 0, 0)


def test_a_dead_mirror_is_asked_once_by_all_jobs(bench: Bench) -> None:
    bench.near.faults.append(Fault(error=Unavailable("near refused the connection")))
    for _ in range(3):
        assert received(bench.source().open(BLOB, 0)) == DATA
        assert received(bench.source().open(OTHER, 0)) == b"another blob"
    assert bench.opens() == (1, 6, 0)
    bench.clock.now += FIRST_SECONDS
    assert received(bench.source().open(BLOB, 0)) == DATA
    assert bench.opens() == (2, 6, 0)


def test_one_that_ends_early_is_left_alone(bench: Bench) -> None:
    bench.near.faults.append(Fault(cut=1000))
    assert received(bench.source().open(BLOB, 0)) == DATA[:1000]
    assert received(bench.source().open(BLOB, 1000)) == DATA[1000:]
    assert bench.opens() == (1, 1, 0)


def test_a_range_that_came_whole_is_a_kept_promise(bench: Bench) -> None:
    bench.near.faults.append(Fault(error=Unavailable("reset")))
    for end in (500, 700):
        received(bench.source().open(BLOB, 0, end))
        bench.clock.now += FIRST_SECONDS
    bench.near.faults.append(Fault(error=Unavailable("reset")))
    received(bench.source().open(BLOB, 0))
    bench.clock.now += FIRST_SECONDS  # not twice that: the range made up for the first failure
    received(bench.source().open(BLOB, 0))
    assert bench.opens() == (4, 2, 0)


def test_what_a_mirror_stops_at_goes_on_from_the_next(bench: Bench) -> None:
    def reset(digest: Digest, position: int) -> None:
        if position >= 1000:
            raise Unavailable("reset")

    bench.near.gate = reset
    source, view = bench.source(), memoryview(bytearray(1000))
    with source.open(BLOB, 0) as opened:
        assert opened.readinto(view) == 1000
        with pytest.raises(Unavailable):
            opened.readinto(view)
    assert received(source.open(BLOB, 1000)) == DATA[1000:]
    assert bench.far.opens == [(BLOB.digest, 1000)]
    assert bench.opens() == (1, 1, 0)


def test_a_missing_blob_is_no_ill_health_and_not_asked_for_twice(bench: Bench) -> None:
    del bench.near.blobs[BLOB.digest]
    source = bench.source()
    for _ in range(3):
        assert received(source.open(BLOB, 0)) == DATA
    assert received(source.open(OTHER, 0)) == b"another blob"
    assert bench.opens() == (2, 3, 0)
    assert received(bench.source().open(BLOB, 0)) == DATA  # another job asks again
    assert bench.opens() == (3, 4, 0)


@pytest.mark.parametrize("error", [Unauthenticated("401"), Forbidden("403")])
def test_a_mirror_that_refuses_is_not_used_for_this_model(bench: Bench, error: Unauthenticated | Forbidden) -> None:
    bench.near.faults.append(Fault(error=error))
    source = bench.source()
    for blob in (BLOB, OTHER, BLOB):
        received(source.open(blob, 0))
    assert bench.opens() == (1, 3, 0)
    received(bench.source().open(BLOB, 0))
    assert bench.opens() == (2, 3, 0)


@pytest.mark.parametrize(
    "error", [NotFound("404"), Unauthenticated("401"), Forbidden("403"), Unavailable("503"), IntegrityError("size")]
)
def test_the_registrys_word_is_final(
    bench: Bench, error: NotFound | Unauthenticated | Forbidden | Unavailable | IntegrityError
) -> None:
    bench.near.blobs.clear()
    bench.far.blobs.clear()
    bench.origin.faults.append(Fault(error=error))
    with pytest.raises(type(error), match=str(error)):
        bench.source().open(BLOB, 0)


def test_who_may_have_served_wrong_bytes_is_barred_for_that_blob_and_left_alone(bench: Bench) -> None:
    source = bench.source()
    received(source.open(BLOB, 0))
    received(source.open(OTHER, 0))
    assert source.blame(BLOB, "they hash to something else")
    assert bench.bars.standing == {("near", BLOB.digest): 1}
    assert received(source.open(BLOB, 0)) == DATA
    assert received(source.open(OTHER, 0)) == b"another blob"
    assert bench.opens() == (2, 2, 0)
    bench.clock.now += FIRST_SECONDS
    assert received(source.open(OTHER, 0)) == b"another blob"
    assert received(bench.source().open(BLOB, 0)) == DATA  # the bar holds for other jobs, and for the next process
    assert bench.opens() == (3, 3, 0)


@pytest.mark.parametrize(
    "fault", [Fault(error=Unavailable("near answered 502")), Fault(cut=1000), None], ids=["refuses", "ends", "lies"]
)
def test_a_registry_that_anybody_runs_takes_no_mirror_from_others(bench: Bench, fault: Fault | None) -> None:
    """What such a registry says comes through a mirror that stands before all: silence, errors, wrong bytes."""
    strange = MirroredSource(bench.origin, [bench.near, bench.far], bench.health, bench.bars.of, is_strange=True)
    if fault is not None:
        bench.near.faults.append(fault)
    came = received(strange.open(BLOB, 0))
    if fault is None:
        assert strange.blame(BLOB, "they hash to something else")
    assert received(strange.open(BLOB, len(came) % len(DATA))) == (DATA[len(came) :] or DATA)
    assert len(bench.near.opens) == 1  # its own pull goes on without
    assert received(bench.source().open(OTHER, 0)) == b"another blob"
    assert len(bench.near.opens) == 2


def test_a_mirror_that_nobody_reaches_is_dead_for_all(bench: Bench) -> None:
    strange = MirroredSource(bench.origin, [bench.near, bench.far], bench.health, bench.bars.of, is_strange=True)
    bench.near.faults.append(Fault(error=Unavailable("near refused the connection", unreachable=True)))
    assert received(strange.open(BLOB, 0)) == DATA
    assert received(bench.source().open(BLOB, 0)) == DATA
    assert bench.opens() == (1, 2, 0)


def test_blame_ends_with_the_registry(bench: Bench) -> None:
    source = bench.source()
    blamed = 0
    received(source.open(BLOB, 0))
    while source.blame(BLOB, "wrong"):
        blamed += 1
        received(source.open(BLOB, 0))
    assert blamed == 2
    assert bench.opens() == (1, 1, 1)


def test_all_that_served_a_part_are_suspects(bench: Bench) -> None:
    source = bench.source()
    bench.near.faults.append(Fault(cut=1000))
    received(source.open(BLOB, 0))
    received(source.open(BLOB, 1000))
    assert bench.opens() == (1, 1, 0)
    assert source.blame(BLOB, "wrong")
    assert set(bench.bars.standing) == {("near", BLOB.digest), ("far", BLOB.digest)}


def test_a_mirror_that_knows_another_size_is_wrong(bench: Bench) -> None:
    bench.near.faults.append(Fault(error=IntegrityError("near says that it has 7 bytes")))
    assert received(bench.source().open(BLOB, 0)) == DATA
    assert bench.bars.standing == {("near", BLOB.digest): 1}


def test_more_than_there_is_fails_the_mirror_and_not_the_blob(bench: Bench) -> None:
    bench.near.faults.append(Fault(extra=b"more"))
    source, view = bench.source(), memoryview(bytearray(len(DATA) + 1))
    with source.open(BLOB, 0) as opened:
        assert opened.readinto(view) == len(DATA)
        with pytest.raises(Unavailable, match="mirror near sends more"):
            opened.readinto(view)
    assert received(source.open(BLOB, 0)) == DATA
    assert bench.opens() == (1, 1, 0)


def test_a_wait_that_a_mirror_asks_for_is_kept(bench: Bench) -> None:
    bench.near.faults.append(Fault(error=Unavailable("too many requests", retry_after=100.0)))
    received(bench.source().open(BLOB, 0))
    bench.clock.now += 99
    received(bench.source().open(BLOB, 0))
    assert bench.opens() == (1, 2, 0)
    bench.clock.now += 1
    received(bench.source().open(BLOB, 0))
    assert bench.opens() == (2, 2, 0)


def limited(bench: Bench, places: int) -> MirroredSource:
    """As a job has it, where the near mirror takes so many connections."""
    bench.health = Health(bench.clock, {"near": threading.Semaphore(places)})
    return bench.source()


def test_a_mirror_without_a_connection_left_is_passed_over_until_it_has_one(bench: Bench) -> None:
    source = limited(bench, 1)
    with source.open(BLOB, 0):
        assert received(source.open(OTHER, 0)) == b"another blob"
        assert bench.opens() == (1, 1, 0)
    assert received(source.open(OTHER, 0)) == b"another blob"
    assert bench.opens() == (2, 1, 0)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(error=NotFound("404")),
        Fault(error=Forbidden("403")),
        Fault(error=Unavailable("reset")),
        Fault(error=IntegrityError("another size")),
        Fault(error=Cancelled("stopped")),
        Fault(cut=10),
    ],
    ids=lambda fault: type(fault.error).__name__,
)
def test_whatever_a_mirror_answers_its_connection_is_free_afterwards(bench: Bench, fault: Fault) -> None:
    source = limited(bench, 1)
    bench.near.faults.append(fault)
    with contextlib.suppress(Cancelled):
        received(source.open(BLOB, 0))
    assert len(bench.near.opens) == 1
    bench.clock.now += FIRST_SECONDS
    assert received(bench.source().open(OTHER, 0)) == b"another blob"
    assert len(bench.near.opens) == 2
