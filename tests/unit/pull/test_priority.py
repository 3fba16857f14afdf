"""Jobs that compete for connections: what a pod waits for goes first, and a job that gives way loses no byte."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from modelmount.formats.selection import EVERYTHING
from modelmount.oci.digest import Digest
from modelmount.pull.job import AWAITED_SECONDS, Job, State
from modelmount.sources.throttled import Bandwidth
from tests.unit.pull.test_puller import ANONYMOUS, SECONDS, Bench, tree_of

LARGE = os.urandom(16 << 20)
LARGE_DIGEST = Digest.of(LARGE)
HELD_FROM = 1 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.settings = msgspec.structs.replace(
        made.settings, pull=msgspec.structs.replace(made.settings.pull, connections=1)
    )
    yield made
    made.close()


def test_a_prefetch_gives_its_only_connection_to_a_pods_job_and_goes_on_afterwards(bench: Bench) -> None:
    prefetched, wanted = bench.model(("model.bin", LARGE)), bench.model(("model.bin", os.urandom(300_000)))
    under_way, pod_done = threading.Event(), threading.Event()

    def slowly(digest: Digest, position: int) -> None:
        if digest == LARGE_DIGEST and position >= HELD_FROM:
            under_way.set()
            pod_done.wait(0.05)  # each piece, as long as the pod's job isn't done

    bench.source.gate = slowly
    puller = bench.puller()
    prefetch = puller.ensure(prefetched, EVERYTHING, ANONYMOUS, prefetch=True)
    assert under_way.wait(SECONDS)
    pod = puller.ensure(wanted, EVERYTHING, ANONYMOUS)
    tree_of(pod)
    assert prefetch.state is State.RUNNING
    pod_done.set()
    assert (tree_of(prefetch) / "model.bin").read_bytes() == LARGE
    offsets = [offset for digest, offset in bench.source.opens if digest == LARGE_DIGEST]
    assert offsets[0] == 0
    assert HELD_FROM <= offsets[1] < len(LARGE)  # it was interrupted, and went on from there
    assert prefetch.progress.fetched_bytes == len(LARGE)


def test_a_prefetch_makes_way_for_a_pods_job_of_another_process_and_loses_nothing(bench: Bench) -> None:
    pods = os.urandom(300_000)
    prefetched, wanted = bench.model(("model.bin", LARGE)), bench.model(("model.bin", pods))
    under_way, pod_done, alone = threading.Event(), threading.Event(), threading.Event()
    asked_meanwhile: list[int] = []

    def in_step(digest: Digest, position: int) -> None:
        if digest == LARGE_DIGEST and position >= HELD_FROM:
            under_way.set()
            pod_done.wait(0.5)  # each piece, as long as the pod's job isn't done
        if digest == Digest.of(pods):
            deadline = time.monotonic() + SECONDS
            while bench.source.open_now > 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            alone.set()
            asked_meanwhile.append(bench.opened()[LARGE_DIGEST])

    bench.source.gate = in_step
    prefetch = bench.puller().ensure(prefetched, EVERYTHING, ANONYMOUS, prefetch=True)
    assert under_way.wait(SECONDS)
    tree_of(bench.puller().ensure(wanted, EVERYTHING, ANONYMOUS))
    pod_done.set()
    assert alone.is_set()
    assert set(asked_meanwhile) == {1}
    assert (tree_of(prefetch) / "model.bin").read_bytes() == LARGE
    offsets = [offset for digest, offset in bench.source.opens if digest == LARGE_DIGEST]
    assert offsets[0] == 0
    assert HELD_FROM <= offsets[1] < len(LARGE)
    assert prefetch.progress.fetched_bytes == len(LARGE)


def test_a_pods_job_has_the_bandwidth_before_a_prefetch(bench: Bench) -> None:
    """Whatever the prefetch has under way: the limit is such that all of it together would take minutes."""
    bench.settings = msgspec.structs.replace(
        bench.settings, pull=msgspec.structs.replace(bench.settings.pull, connections=8)
    )
    bench.bandwidth = Bandwidth(100_000)
    prefetched = bench.model(*((f"{n}.bin", os.urandom(5 << 20)) for n in range(4)))
    pods = os.urandom(100_000)
    wanted = bench.model(("model.bin", pods))
    under_way = threading.Event()
    bench.source.gate = lambda digest, position: under_way.set() if position else None
    puller = bench.puller()
    prefetch = puller.ensure(prefetched, EVERYTHING, ANONYMOUS, prefetch=True)
    assert under_way.wait(SECONDS)
    came: list[int] = []

    def note(digest: Digest, position: int) -> None:
        if digest == Digest.of(pods):
            came.append(prefetch.progress.fetched_bytes)

    bench.source.gate = note
    tree_of(puller.ensure(wanted, EVERYTHING, ANONYMOUS))
    assert came[-1] - came[0] <= bench.settings.pull.connections * bench.bandwidth.piece_bytes
    prefetch.cancel.set()


def test_models_of_equal_importance_share_what_there_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one connection for two, they take turns, and both get done."""
    monkeypatch.setattr("modelmount.pull.connections.TURN_SECONDS", 0.1)
    models = [bench.model(("model.bin", os.urandom(12 << 20))) for _ in range(2)]
    order: list[Digest] = []
    both = threading.Event()

    def note(digest: Digest, position: int) -> None:
        order.append(digest)
        if len(set(order)) == 2:
            both.set()
        both.wait(0.05)  # each piece, as long as only one of them had a turn

    bench.source.gate = note
    puller = bench.puller()
    jobs = [puller.ensure(model, EVERYTHING, ANONYMOUS) for model in models]
    for job in jobs:
        tree_of(job)
    second = next(n for n, digest in enumerate(order) if digest != order[0])
    assert order[0] in order[second:], "the second job began when the first one was done"


@pytest.mark.parametrize(("seconds", "awaited"), [(AWAITED_SECONDS - 1, True), (AWAITED_SECONDS, False)])
def test_a_job_is_awaited_as_long_as_its_callers_come_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float, awaited: bool
) -> None:
    now = [1000.0]
    monkeypatch.setattr("modelmount.pull.job.time.monotonic", lambda: now[0])
    job = Job(bench.model(("model.bin", b"x")), EVERYTHING, ANONYMOUS)
    now[0] += seconds
    assert job.is_awaited is awaited
    job.join(ANONYMOUS)
    assert job.is_awaited


def test_a_prefetch_is_awaited_once_somebody_joins_who_will_read_it(bench: Bench) -> None:
    job = Job(bench.model(("model.bin", b"x")), EVERYTHING, ANONYMOUS, prefetches=True)
    assert not job.is_awaited
    job.join(ANONYMOUS, prefetch=True)
    assert not job.is_awaited
    job.join(ANONYMOUS)
    assert job.is_awaited
