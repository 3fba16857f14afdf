"""The list of what one directory's tests played: a named row for each, for people who want to see what there was."""

from __future__ import annotations

import re
from typing import Any

import pytest


class Rows:
    """Notes each test below `directory` once: its call, or the step that kept it from being called. What a test records
    with `record_property` is part of its row.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.rows: list[dict[str, Any]] = []

    def note(self, report: pytest.TestReport) -> None:
        """For `pytest_runtest_logreport`."""
        if self._directory in report.nodeid and (report.when == "call" or report.outcome != "passed"):
            row = {"row": _name(report.nodeid), "outcome": report.outcome, "seconds": round(report.duration, 3)}
            self.rows.append(row | dict(report.user_properties))

    @property
    def passed(self) -> int:
        """How many went as they should."""
        return sum(row["outcome"] == "passed" for row in self.rows)


def _name(nodeid: str) -> str:
    """`test_network.py::test_a_fault[H7 …]` is the row in brackets; a test without brackets is a row itself."""
    test = nodeid.partition("::")[2]
    row = re.search(r"\[(.*)\]$", test)
    return row[1] if row else test.removeprefix("test_").replace("_", " ")
