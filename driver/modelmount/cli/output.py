"""How commands speak: results on standard output, everything else on standard error, both as JSON where asked for.

A result is text for a person, or JSON for a program with `--json`: one object, except where a command streams one a
line. With `--json` an error too is an object on standard output, so that a program reads one stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from modelmount.errors import ModelMountError
from modelmount.pull.progress import human_bytes

UNKNOWN = "-"


class Output:
    """The voice of one command; `json` is set by its `--json`, `quiet` by its `--quiet`."""

    def __init__(self) -> None:
        self.json = self.quiet = False

    def text(self, *lines: str) -> None:
        """A result for a person."""
        for line in () if self.quiet else lines:
            click.echo(printable(line))

    def object(self, value: Any) -> None:
        """A result, or a part of one, for a program: JSON on one line."""
        click.echo(json.dumps(value, ensure_ascii=False))

    def note(self, line: str) -> None:
        """Something a person may want to know meanwhile; never part of a result."""
        click.echo(printable(line), err=True)

    def error(self, error: ModelMountError) -> None:
        """What went wrong and what to do about it."""
        self.failure(error.reason, error.message)

    def failure(self, reason: str, message: str) -> None:
        """An error that has no class of its own."""
        if self.json:
            self.object({"error": {"reason": reason, "message": message}})
        else:
            self.note(f"modelmount: {message}")


def columns(heading: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """A table as lines: columns as wide as their widest cell, two spaces between them, those in `right` flush right."""
    table = [heading, *rows]
    widths = [max(len(row[n]) for row in table) for n in range(len(heading))]
    return [
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def ago(then: float) -> str:
    """How long ago a wall-clock time was, roughly: `just now`, `5 min ago`, `3 days ago`."""
    seconds = max(0.0, time.time() - then)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (2 * size if unit == "days" else size):
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"


def size(count: int | None) -> str:
    """Bytes for a person, `-` where unknown."""
    return UNKNOWN if count is None else human_bytes(count)


def counted(count: int, word: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def printable(text: str) -> str:
    """Names and messages come from artifacts and registries, and what controls a terminal must not reach it."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)
