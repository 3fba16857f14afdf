"""What a case found: tables for a person, a document for a program, figures that a promise bounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text below a title; `notes` say what to know before comparing."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


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
class Result:
    """One case's answer. `document` is plain JSON."""

    document: dict[str, Any]
    tables: Sequence[Table]
    figures: Sequence[Figure] = field(default=())


def show(console: Console, table: Table) -> None:
    """Print one table and its notes."""
    drawn = RichTable(title=table.title, title_justify="left", title_style="bold")
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    console.print()
    console.print(drawn)
    for note in table.notes:
        console.print(f"  {note}", style="dim")


def show_figures(console: Console, figures: Sequence[Figure]) -> None:
    """Print the promised figures and whether they are kept."""
    rows = [
        (
            f.name,
            f"{f.value:.3f} {f.unit}",
            f"{'≥' if f.at_least else '≤'} {f.limit:g} {f.unit}",
            "yes" if f.met else "NO",
        )
        for f in figures
    ]
    show(console, Table("Promised figures", ("figure", "measured", "bound", "kept"), rows))


def write(path: Path, document: dict[str, Any], figures: Sequence[Figure]) -> None:
    """Write everything as one JSON document, replacing the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {**document, "figures": [asdict(f) | {"met": f.met} for f in figures]}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(whole, indent=1) + "\n")
    temporary.replace(path)
