"""One cluster for all scenarios, a row for each, and the line at the end. Only scripts/e2e runs them: elsewhere there
is no cluster to collect for.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.patience import Patience
from tests.cluster.world import World

RESULTS = Path(__file__).resolve().parents[2] / "bench/results"
ROWS = RESULTS / "e2e.jsonl"
LINE = RESULTS / "e2e.line"
PLACE = os.environ.get("MODELMOUNT_CLUSTER")

collect_ignore_glob = [] if PLACE else ["test_*.py"]
_rows: list[dict[str, Any]] = []
_mounts_ms: list[float] = []
_twice: list[int] = []


class Figures(dict[str, Any]):
    """What a scenario measured, for its row."""

    def mounts(self, milliseconds: list[float]) -> None:
        """Warm mounts, by the kubelet's own clock."""
        _mounts_ms.extend(milliseconds)
        self["mount_ms_p50"] = round(statistics.median(milliseconds), 2)


@pytest.fixture(scope="session")
def started() -> Iterator[World]:
    """The cluster with modelmount on it."""
    assert PLACE is not None
    with World(Path(PLACE)) as world:
        yield world


@pytest.fixture
def world(started: World) -> Iterator[World]:
    """The cluster, with nothing left on the node after the scenario; and no byte was fetched twice, whatever it did."""
    started.begin()
    yield started
    started.end()
    _twice.append(started.fetched_twice())
    assert _twice[-1] == 0, "bytes were fetched twice"


@pytest.fixture(scope="session")
def patience(started: World) -> Iterator[Patience]:
    """What goes on from the first scenario to the last but one."""
    with Patience(started) as begun:
        yield begun


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """The scenario's figures; they go into its row."""
    found = Figures()
    request.node.stash[_FIGURES] = found
    return found


_FIGURES = pytest.StashKey[dict[str, Any]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A row for each scenario, whatever became of it."""
    outcomes: dict[str, str] = {}
    item.stash[_OUTCOMES] = outcomes
    begun = time.monotonic()
    result = yield
    failed = [when for when, outcome in outcomes.items() if outcome == "failed"]
    row = {
        "scenario": item.name.removeprefix("test_"),
        "outcome": "failed" if failed else outcomes.get("call", "skipped"),
        "seconds": round(time.monotonic() - begun, 1),
    }
    _rows.append(row | item.stash.setdefault(_FIGURES, Figures()))
    return result


_OUTCOMES = pytest.StashKey[dict[str, str]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember what each phase came to; keep the cluster's logs of a failure."""
    report = yield
    item.stash[_OUTCOMES][report.when] = report.outcome
    if report.failed and PLACE is not None:
        for log in (*Path(PLACE).glob("*.log"), *Path(PLACE).glob("node*/*.log")):
            report.sections.append((f"{log.relative_to(PLACE)}, its end", log.read_text(errors="replace")[-3000:]))
    return report


def pytest_sessionfinish() -> None:
    """Write the rows and the line."""
    if not _rows:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in _rows))
    line = {
        "cluster": "real",
        "driver": "pod",
        "scenarios": len(_rows),
        "passed": sum(row["outcome"] == "passed" for row in _rows),
        "mount_ms_p50": round(statistics.median(_mounts_ms), 2) if _mounts_ms else None,
        "bytes_fetched_twice": sum(_twice),
        "rows": str(ROWS.relative_to(RESULTS.parents[1])),
    }
    LINE.write_text(f"e2e: {json.dumps(line)}\n")
