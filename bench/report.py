"""What a case found: rows, as a table for a person and as JSON for a program, and figures that a promise bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.rounds import Series

MIB = 1 << 20
COLUMNS = (
    "tool",
    "median s",
    "min s",
    "GB/s",
    "time / ours",
    "CPU s",
    "server",
    "RSS MiB",
    "served MB",
    "checks",
    "syncs",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One tool in one case: what was measured, or the reason why nothing was. `verifies` and `durable` are None where
    they mean nothing.
    """

    case: str
    tool: str
    series: Series | None = None
    reason: str = ""
    verifies: bool | None = None
    durable: bool | None = None

    def document(self) -> dict[str, Any]:
        """Plain JSON; the keys are a contract."""
        if self.series is None:
            return {"case": self.case, "tool": self.tool, "reason": self.reason}
        series = self.series
        found = {
            "case": self.case,
            "tool": self.tool,
            "wall_s": round(series.wall, 6),
            "cpu_s": round(series.median(lambda s: s.cpu), 3),
            "rss_mib": round(max(s.rss for s in series.samples) / MIB, 1),
            "bytes_served": int(series.median(lambda s: s.served)),
            "rounds": len(series.samples),
            "version": series.version,
        }
        if any(s.again for s in series.samples):
            found["bytes_again"] = int(max(s.again for s in series.samples))
        return found


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value and the bound it was promised to keep; `at_least` turns the comparison round."""

    name: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the bound is kept."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case's answer: `size` bytes were to be had, ours is the first row."""

    title: str
    size: int
    rows: Sequence[Row]
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = field(default=())


def show(console: Console, outcome: Outcome) -> None:
    """Print its table and its notes."""
    table = Table(title=outcome.title, title_justify="left", title_style="bold")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    ours = next((row.series for row in outcome.rows if row.series is not None), None)
    for row in outcome.rows:
        if row.series is not None and ours is not None:
            table.add_row(row.tool, *_cells(row, row.series, ours, outcome.size))
    console.print()
    console.print(table)
    for row in outcome.rows:
        if row.series is None:
            console.print(f"  {row.tool}: {row.reason}", style="dim")
    for note in outcome.notes:
        console.print(f"  {note}", style="dim")


def _cells(row: Row, series: Series, ours: Series, size: int) -> tuple[str, ...]:
    known = {True: "yes", False: "no", None: ""}
    return (
        f"{series.wall:.3f}",
        f"{series.least:.3f}",
        f"{size / series.wall / 1e9:.2f}" if size else "",
        f"{series.ratio(ours):.2f}",
        f"{series.median(lambda s: s.cpu):.2f}",
        f"{series.median(lambda s: s.server_cpu):.2f}",
        f"{max(s.rss for s in series.samples) / MIB:.0f}",
        f"{series.median(lambda s: s.served) / 1e6:.1f}",
        known[row.verifies],
        known[row.durable],
    )


def show_figures(console: Console, figures: Sequence[Figure]) -> None:
    """Print the promised figures and whether they are kept."""
    table = Table(title="Promised figures", title_justify="left", title_style="bold")
    for column in ("figure", "measured", "bound", "kept"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for f in figures:
        bound = f"{'≥' if f.at_least else '≤'} {f.limit:g} {f.unit}"
        table.add_row(f.name, f"{f.value:.3f} {f.unit}", bound, "yes" if f.met else "NO")
    console.print()
    console.print(table)


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By case and peer: its median wall time over ours, from the rows of a document."""
    found: dict[str, dict[str, float]] = {}
    walls = {(row["case"], row["tool"]): row["wall_s"] for row in rows if "wall_s" in row}
    for (case, tool), wall in walls.items():
        if tool != "modelmount" and (case, "modelmount") in walls:
            found.setdefault(case, {})[tool] = round(wall / walls[case, "modelmount"], 3)
    return found


def write(path: Path, machine: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write the rows as one JSON document. Cases that an earlier run wrote and this one did not measure stay."""
    rows = [row.document() for outcome in outcomes for row in outcome.rows]
    measured = {row["case"] for row in rows}
    if path.exists():
        rows = [row for row in json.loads(path.read_text())["cases"] if row["case"] not in measured] + rows
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    document = {"machine": machine, "cases": sorted(rows, key=lambda row: row["case"]), "ratios": ratios(rows)}
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)
