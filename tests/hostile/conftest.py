"""The one node of the whole corpus, and the list of what was played."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import mounts
from tests.fakes.rows import Rows
from tests.hostile.world import Figures, World

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "build/hostile.jsonl"
"""One case a line: its id, its row of the threat model, the code and the sentence it ended with, what was seen."""

_played = Rows("tests/hostile/")
_figures: list[Figures] = []


@pytest.fixture
def world(one: World) -> Iterator[World]:
    """The node, with nothing on it but its resident."""
    yield one
    one.tidy()


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="mm-hostile-") as name:
        try:
            with World(Path(name), tmp_path_factory.mktemp("hostile")) as made:
                _figures.append(made.figures)
                yield made
        finally:
            mounts.detach_below(Path(name))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each test of this directory."""
    _played.note(report)


def pytest_unconfigure() -> None:
    """The last line, below what pytest says: how many attacks there were, and what became of them."""
    cases = [row for row in _played.rows if "id" in row]
    if not cases:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(f"{json.dumps(_plain(row))}\n" for row in cases))
    passed = [row["outcome_of_case"] for row in cases if row["outcome"] == "passed"]
    summary = {
        "artifacts": len(cases),
        "refused": passed.count("refused"),
        "neutralised": passed.count("neutralised"),
        "escapes": sum(len(figures.escapes) for figures in _figures),
        "driver_restarts": sum(figures.restarts for figures in _figures),
        "peak_rss_mib": round(max((figures.peak_rss for figures in _figures), default=0) / (1 << 20), 1),
        "rows": str(RESULTS.relative_to(ROOT)),
    }
    print(f"hostile: {json.dumps(summary)}")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("id", "facts", "code", "reason", "evidence", "outcome_of_case", "outcome", "seconds")
    return {key.replace("_of_case", ""): row.get(key) for key in keys if key != "outcome"} | {
        "passed": row["outcome"] == "passed"
    }
