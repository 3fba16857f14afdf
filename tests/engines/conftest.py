"""Engines and their models, in environments of their own that scripts/engines makes; elsewhere there is nothing to
collect. What was measured is a line at the end.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.e2e.conftest import make_node, node, short

__all__ = ["make_node", "node", "short"]

RESULTS = Path(__file__).resolve().parents[2] / "bench/results"
LINE = RESULTS / "engines.line"
ENGINES = os.environ.get("MODELMOUNT_ENGINES")

collect_ignore_glob = [] if ENGINES else ["test_*.py"]
_figures: dict[str, dict[str, float]] = {}


class Figures:
    """Seconds by what was measured, for the line at the end."""

    def note(self, name: str, seconds: Mapping[str, Sequence[float]]) -> None:
        """The medians of several rounds."""
        _figures[name] = {key: round(statistics.median(values), 3) for key, values in seconds.items()}


@pytest.fixture
def figures() -> Figures:
    """Where a test notes what it measured."""
    return Figures()


@pytest.fixture(scope="session")
def llama_python() -> Path:
    """The interpreter that has llama.cpp."""
    assert ENGINES is not None
    return Path(ENGINES) / "llama/bin/python"


@pytest.fixture(scope="session")
def gguf() -> Path:
    """A real model of 98 MB: SmolLM2-135M-Instruct, four bits a weight."""
    assert ENGINES is not None
    (found,) = (Path(ENGINES) / "llama").rglob("*.gguf")
    return found


def pytest_sessionfinish() -> None:
    """Write the line."""
    if _figures:
        RESULTS.mkdir(parents=True, exist_ok=True)
        LINE.write_text(f"engines: {json.dumps(_figures)}\n")
