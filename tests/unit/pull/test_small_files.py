"""How many connections thousands of small files get."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.formats.base import Encoding
from modelmount.formats.selection import EVERYTHING
from modelmount.pull import smalls
from modelmount.pull.connections import Connections
from modelmount.pull.fetch import Cancel
from modelmount.pull.job import Job
from modelmount.pull.plan import Part
from modelmount.pull.schedule import FIRST_CONNECTIONS, Schedule
from tests.fakes.source import MemorySource
from tests.unit.pull.test_puller import ANONYMOUS, Bench, tree_of

ANSWER_SECONDS = 0.01


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("small", "large", "threads"),
    [(3000, 0, 1), (1, 0, 1), (3000, 1, min(2, FIRST_CONNECTIONS)), (0, 9, FIRST_CONNECTIONS)],
)
def test_small_files_count_as_one_part_when_a_pull_begins(bench: Bench, small: int, large: int, threads: int) -> None:
    source = MemorySource()
    sizes = [100] * small + [smalls.SMALL_FILE_BYTES + 1] * large
    parts = [Part(source.put(n.to_bytes(4) + bytes(size - 4)), Encoding.RAW) for n, size in enumerate(sizes)]
    job = Job(bench.model(("a", b"a")), EVERYTHING, ANONYMOUS)
    schedule = Schedule(job, Connections(32, lambda registry: 16).share("r", lambda: True), Cancel())
    schedule.begin(parts)
    assert schedule.vacancies == threads


def test_small_files_get_more_connections_where_each_answer_is_waited_for(bench: Bench) -> None:
    model = bench.model(*((f"{n}.json", os.urandom(64)) for n in range(400)))
    bench.source.gate = lambda digest, position: time.sleep(ANSWER_SECONDS)
    tree_of(bench.puller().ensure(model, EVERYTHING, ANONYMOUS))
    assert bench.source.most_open >= 4
