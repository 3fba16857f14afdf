"""Pages in the cache: left by a pull that somebody waits for, taken away by a prefetch. Counted by mincore(2)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.formats.selection import EVERYTHING
from modelmount.pull import pages
from modelmount.pull.job import Job
from tests.fakes import push
from tests.fakes.residency import resident
from tests.unit.pull.test_puller import ANONYMOUS, SECONDS, Bench, hold_at, tree_of

WEIGHTS = 12 << 20
FEW, MOST = 0.02, 0.5
"""The kernel may keep pages that it is busy with, and under pressure drop others."""
FOLIO = 64 << 10
"""What it keeps and drops as one, at most, in a file that was written a little at a time."""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def shares(job: Job) -> dict[str, float]:
    """By file of the job's tree, how much of it is cached."""
    root = tree_of(job)
    return {p.relative_to(root).as_posix(): resident(p) for p in root.rglob("*") if p.is_file()}


RAW = [("model.bin", WEIGHTS), ("tokenizer.json", 200_000), ("vocab.txt", 100_000)]


def raw_files() -> list[tuple[str, bytes]]:
    return [(name, os.urandom(size)) for name, size in RAW]


def test_a_pull_that_is_waited_for_leaves_its_pages(bench: Bench) -> None:
    found = shares(bench.puller().ensure(bench.model(*raw_files()), EVERYTHING, ANONYMOUS))
    assert set(found) == {name for name, _ in RAW}
    assert min(found.values()) > MOST


def test_a_prefetch_leaves_none(bench: Bench) -> None:
    found = shares(bench.puller().ensure(bench.model(*raw_files()), EVERYTHING, ANONYMOUS, prefetch=True))
    assert set(found) == {name for name, _ in RAW}
    assert max(found.values()) <= FEW


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize(("kind", "size"), [("tar+gzip", WEIGHTS), ("tar", WEIGHTS), ("tar", 100_000)])
def test_the_same_holds_for_members_of_archives(
    bench: Bench, tmp_path: Path, kind: push.Packing, size: int, prefetch: bool
) -> None:
    (tmp_path / "a.bin").write_bytes(os.urandom(size))
    archive = push.compress(push.tar_of([("a.bin", tmp_path / "a.bin")]), kind)
    model = bench.model((".", archive), media_type=f"application/vnd.cncf.model.weight.v1.{kind}")
    found = shares(bench.puller().ensure(model, EVERYTHING, ANONYMOUS, prefetch=prefetch))
    assert (found["a.bin"] <= max(FEW, FOLIO / size)) if prefetch else (found["a.bin"] > MOST), found


def test_a_prefetch_that_somebody_joins_who_will_read_leaves_its_pages(bench: Bench) -> None:
    model = bench.model(*raw_files())
    arrived, go_on = threading.Event(), threading.Event()
    bench.source.gate = hold_at(0, arrived, go_on)
    puller = bench.puller()
    job = puller.ensure(model, EVERYTHING, ANONYMOUS, prefetch=True)
    assert arrived.wait(SECONDS)
    assert puller.ensure(model, EVERYTHING, ANONYMOUS) is job
    assert puller.ensure(model, EVERYTHING, ANONYMOUS, prefetch=True) is job
    go_on.set()
    assert min(shares(job).values()) > MOST


def test_pages_go_behind_the_hasher_while_the_rest_is_still_to_come(bench: Bench) -> None:
    content = os.urandom(WEIGHTS)
    arrived, go_on = threading.Event(), threading.Event()
    bench.source.gate = hold_at(8 << 20, arrived, go_on)
    job = bench.puller().ensure(bench.model(("model.bin", content)), EVERYTHING, ANONYMOUS, prefetch=True)
    assert arrived.wait(SECONDS)
    (data,) = (bench.store.root / "ingest").glob("*/data")
    while resident(data, 0, 7 << 20) > FEW:
        assert not job.ended.wait(0.01)
    go_on.set()
    assert (tree_of(job) / "model.bin").read_bytes() == content


def test_what_others_read_keeps_its_pages(bench: Bench) -> None:
    """A prefetch of a model that shares a file with one in use drops only what it brought."""
    shared = ("model.bin", os.urandom(WEIGHTS))
    puller = bench.puller()
    used = puller.ensure(bench.model(shared), EVERYTHING, ANONYMOUS)
    assert shares(used)["model.bin"] > MOST
    other = puller.ensure(
        bench.model(shared, ("config.json", os.urandom(100_000))), EVERYTHING, ANONYMOUS, prefetch=True
    )
    found = shares(other)
    assert found["config.json"] <= FEW
    assert found["model.bin"] > MOST


def test_an_equal_file_that_was_first_keeps_its_pages(tmp_path: Path) -> None:
    first, mine = tmp_path / "first", tmp_path / "mine"
    for path in (first, mine):
        path.write_bytes(os.urandom(1 << 20))
    with pages.dropped(mine):
        mine.unlink()
    assert resident(first) > MOST


def test_a_layer_that_was_deleted_for_an_equal_one_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "layer/files").mkdir(parents=True)
    with pages.layer_dropped(tmp_path / "layer"):
        (tmp_path / "layer/files").rmdir()


def test_a_file_that_is_gone_has_no_pages(tmp_path: Path) -> None:
    pages.drop(tmp_path / "gone")
