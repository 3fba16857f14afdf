"""The one node of all attempts, and the list of what was tried."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import mounts
from tests.fakes.rows import Rows
from tests.tenants.world import World

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "build/tenants.jsonl"
"""One attempt a line: its name, how the call ended, and whether anything leaked."""

_played = Rows("tests/tenants/")
_found: list[str] = []


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="mm-tenants-") as name:
        try:
            with World(Path(name), tmp_path_factory.mktemp("tenants")) as made:
                yield made
                _found.extend(made.places_with_secrets())
                assert _found == []
        finally:
            mounts.detach_below(Path(name))


@pytest.fixture
def world(one: World) -> Iterator[World]:
    """The node; after each attempt nothing may have leaked."""
    yield one
    one.assert_nothing_leaked()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each test of this directory."""
    _played.note(report)


def pytest_unconfigure() -> None:
    """The last line, below what pytest says: how many attempts there were, and what came of them."""
    if not _played.rows:
        return
    attempts: dict[str, bool] = {}
    played = [row for row in _played.rows if not row["row"].startswith("the hunt")]
    for row in played:  # a row more for what was seen only afterwards
        attempts[row["row"]] = attempts.get(row["row"], False) or row["outcome"] != "passed"
    RESULTS.parent.mkdir(exist_ok=True)
    lines = [
        {
            "attempt": row["row"],
            "code": row.get("code"),
            "message": row.get("message"),
            "leaked": attempts[row["row"]],
            "seconds": row["seconds"],
        }
        for row in played
    ]
    RESULTS.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    summary = {
        "attempts": len(attempts),
        "leaks": sum(attempts.values()),
        "secrets_found": len(_found),
        "rows": str(RESULTS.relative_to(ROOT)),
    }
    print(f"tenants: {json.dumps(summary)}")
