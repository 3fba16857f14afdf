"""A pull as it is watched: on a terminal a bar and the few files that matter, for a program objects, else lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modelmount.cli.output import Output, counted, printable
from modelmount.pull import progress
from modelmount.pull.progress import File, Snapshot, human_bytes, human_seconds

TELL_SECONDS = 2.0
"""How often a program is told, and when a log is told first; a quick pull needs no words."""
LOG_SECONDS = 10.0
"""How often a log is told afterwards."""
SHOWN_FILES = 6
"""Lines for single files on a terminal: a model may have thousands, and nobody reads a list that scrolls."""
SHOWN_BYTES = 1 << 20
"""Files below this are the bar's matter: they would come and go faster than anybody reads."""
WIDE = 100
"""Columns from which on everything fits beside a bar of some length."""
WIDE_NAME, NARROW_NAME = 34, 26


class Display(Protocol):
    """Shows where a pull stands; told often, it decides itself what is worth showing."""

    def show(self, snapshot: Snapshot) -> None:
        """The pull stands so now."""


@contextlib.contextmanager
def display(reference: str, output: Output) -> Iterator[Display]:
    """What suits `output`, for the length of the block; what is on a terminal is gone afterwards."""
    console = Console(stderr=True)
    if output.quiet:
        yield _Nothing()
    elif output.json:
        changes = Changes()
        yield Occasional(lambda s: output.object({"progress": changes.since_last(s)}), TELL_SECONDS)
    elif not console.is_terminal or console.is_dumb_terminal:
        yield Occasional(lambda s: output.note(progress.sentence(reference, s)), LOG_SECONDS)
    else:
        # No thread of its own: it is drawn when it is told, and never while something else is printed.
        with Live(console=console, transient=True, auto_refresh=False) as live:
            yield Terminal(reference, live)


class _Nothing:
    def show(self, snapshot: Snapshot) -> None:
        """Quiet was asked for."""


class Occasional:
    """Tells where a pull stands now and then, and only what is new."""

    def __init__(self, tell: Callable[[Snapshot], None], seconds: float) -> None:
        """The first time after TELL_SECONDS, then `seconds` apart."""
        self._tell, self._seconds = tell, seconds
        self._next = time.monotonic() + TELL_SECONDS
        self._last: Snapshot | None = None

    def show(self, snapshot: Snapshot) -> None:
        """Tell it if it is time."""
        now = time.monotonic()
        if now >= self._next and snapshot != self._last:
            self._next, self._last = now + self._seconds, snapshot
            self._tell(snapshot)


class Changes:
    """Snapshots as objects that name only the files that changed since the one before: of thousands, most don't."""

    def __init__(self) -> None:
        """Nothing was told yet: the first object names every file."""
        self._told: set[File] = set()

    def since_last(self, snapshot: Snapshot) -> dict[str, Any]:
        """The object for `snapshot`."""
        now = set(snapshot.files)
        changed = [asdict(file) for file in snapshot.files if file not in self._told]
        self._told = now
        return {
            "phase": snapshot.phase,
            "bytes_done": snapshot.bytes_done,
            "bytes_total": snapshot.bytes_total,
            "bytes_per_second": round(snapshot.rate),
            "eta_seconds": None if snapshot.eta_seconds is None else round(snapshot.eta_seconds, 1),
            "files_ready": snapshot.files_ready,
            "files_total": len(snapshot.files),
            "trouble": snapshot.trouble or None,
            "files": changed,
        }


class Terminal:
    """A bar for the model, below it lines for the large files in work, and what went wrong where nothing comes. A file
    that is over before the next look gets none: it would only flicker.
    """

    def __init__(self, reference: str, live: Live) -> None:
        """`live` is refreshed by nobody else."""
        self._reference, self._live = printable(reference), live
        self._active: set[str] = set()

    def show(self, snapshot: Snapshot) -> None:
        """Draw it in the place of what was drawn before."""
        active = [file for file in snapshot.files if file.is_active and file.bytes_total >= SHOWN_BYTES]
        lasting = [file for file in active if file.digest in self._active]
        self._active = {file.digest for file in active}
        wide = self._live.console.width >= WIDE
        lines: list[RenderableType] = [_model(self._reference, snapshot, wide=wide)]
        if lasting and len(snapshot.files) > 1:
            lines.append(_files(lasting[:SHOWN_FILES], WIDE_NAME if wide else NARROW_NAME))
        if len(lasting) > SHOWN_FILES:
            lines.append(Text(f"  and {len(lasting) - SHOWN_FILES} more", style="dim"))
        if snapshot.trouble:
            lines.append(Text(f"  {printable(snapshot.trouble)}", style="yellow"))
        self._live.update(Group(*lines), refresh=True)


def _model(reference: str, snapshot: Snapshot, *, wide: bool) -> RenderableType:
    if not snapshot.files:
        return Text(f"{snapshot.phase} {reference}", no_wrap=True, overflow="ellipsis")
    rate = eta = ""
    if snapshot.phase in progress.MOVING and snapshot.rate > 0 and snapshot.eta_seconds is not None:
        rate = f"{human_bytes(snapshot.rate)}/s"
        eta = f"{human_seconds(snapshot.eta_seconds)} left"
    cells: list[RenderableType] = [
        Text(snapshot.phase, style="bold"),
        _bar(snapshot.bytes_done, snapshot.bytes_total),
        Text(_percent(snapshot.bytes_done, snapshot.bytes_total)),
        Text(progress.of(snapshot.bytes_done, snapshot.bytes_total), style="green"),
        Text(rate, style="red"),
        Text(eta, style="cyan"),
    ]
    if wide:
        cells.append(Text(f"{snapshot.files_ready} of {counted(len(snapshot.files), 'file')}"))
    table = _table(9, None, 5, 15, 9, 11, *([14] if wide else []))
    table.add_row(*cells)
    return table


def _files(files: list[File], room: int) -> RenderableType:
    table = _table(room + 2, None, 9, 15)
    for file in files:
        doing = _percent(file.bytes_done, file.bytes_total)
        if file.state == "unpacking":
            doing = "unpacking"
        elif file.bytes_done >= file.bytes_total:
            doing = "verifying"
        table.add_row(
            Text(f"  {_name(file.name, room)}"),
            _bar(file.bytes_done, file.bytes_total),
            Text(doing),
            Text(progress.of(file.bytes_done, file.bytes_total), style="green"),
        )
    return table


def _table(*widths: int | None) -> Table:
    """Columns of at least these widths, so that they don't jump; None takes what is left. The first is flush left."""
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for n, width in enumerate(widths):
        table.add_column(no_wrap=True, min_width=width, ratio=None if width else 1, justify="right" if n else "left")
    return table


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=max(1, total), completed=min(done, total) if total else 1)


def _percent(done: int, total: int) -> str:
    return f"{100 * done // max(1, total)} %"


def _name(name: str, room: int) -> str:
    """The end of a long name: that is where shards differ."""
    text = printable(name)
    return text if len(text) <= room else "…" + text[1 - room :]
