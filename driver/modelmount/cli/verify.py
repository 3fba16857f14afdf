"""`modelmount verify`: is every byte still what its digest says?"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from modelmount import config
from modelmount.cache import scrub
from modelmount.cache import shelf as shelves
from modelmount.cache.census import Census
from modelmount.cache.items import Item
from modelmount.cache.scrub import Examined, Result, Scrub
from modelmount.cli import output
from modelmount.cli.options import SIZE, json_option, output_of, settings_options
from modelmount.errors import NotFound
from modelmount.oci.reference import Reference

MISMATCH, UNREADABLE, UNFINISHED = 16, 32, 64
"""Bits of the exit code."""

_SPAN = re.compile(r"(?P<number>[0-9]+)(?P<unit>[smh])", re.ASCII)
_PART = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)%", re.ASCII)


class _Span(click.ParamType[float]):
    """A length of time: `90s`, `30m`, `2h`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = _SPAN.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no length of time; write 90s, 30m or 2h", param, ctx)
        return int(match["number"]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match["unit"]]


class _Part(click.ParamType[float]):
    """A part of the whole: `10%`."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = _PART.fullmatch(str(value).strip())
        if match is None or not 0 < float(match["number"]) <= 100:
            self.fail(f"{value!r} is no part of the whole; write 10%", param, ctx)
        return float(match["number"]) / 100


@click.command(
    short_help="Check that every byte is still what its digest says.",
    epilog=f"""\b
Examples:
  modelmount verify                                     everything
  modelmount verify harbor.example.com/llm/llama3:v1    one model
  modelmount verify --fraction 10% --rate 100MB         a tenth, from where the last one ended
  modelmount verify --for 30m

Exit codes, added up: {MISMATCH} other bytes than there should be; {UNREADABLE} the disk can't read some;
{UNFINISHED} stopped before its end.
""",
)
@click.argument("references", metavar="[REFERENCE]...", nargs=-1)
@click.option("--fraction", type=_Part(), metavar="PERCENT", help="Only so much, from where the last one ended.")
@click.option("--for", "seconds", type=_Span(), metavar="TIME", help="Stop after this time: 90s, 30m, 2h.")
@click.option("--rate", type=SIZE, metavar="SIZE", help="Read no more than so much a second.")
@click.option("--report-only", is_flag=True, help="Leave bad bytes where they are.")
@settings_options
@json_option
@click.pass_context
def verify(
    context: click.Context,
    references: tuple[str, ...],
    fraction: float | None,
    seconds: float | None,
    rate: int | None,
    report_only: bool,
    effective: config.Effective,
) -> None:
    """Read blobs and unpacked layers from the disk and compare them with their digests.

    What went bad goes into quarantine, with the trees that show it: pods that run keep it and their volumes report it,
    new ones get good bytes. The page cache stays as it is.
    """
    say = output_of(context)
    shelf = shelves.existing(effective.settings)
    if shelf is None:
        _chosen(Census(), references)
        _say(say, [], 0, finished=True)
        return
    census = shelf.collector.reader.read()
    items = _chosen(census, references) if references else scrub.in_turn(shelf.store, census.items.values())
    wanted = sum(item.bytes for item in items) * (1.0 if fraction is None else fraction)
    stopped = threading.Event()
    scrubber = Scrub(shelf.store, lambda: rate or 0, stopped, isolate=not report_only)
    bad: list[Examined] = []
    last = ""
    with _stopping(stopped, seconds):
        for examined in scrubber.run(items):
            last = examined.item
            if examined.result in {Result.MISMATCH, Result.UNREADABLE}:
                bad.append(examined)
                if not say.json:
                    say.note(_sentence(examined, census))
            if fraction is not None and scrubber.bytes >= wanted:
                break
    if last and not references:
        scrub.reached(shelf.store, last if last != items[-1].name else "")
    _say(say, [_plain(each, census) for each in bad], scrubber.bytes, finished=not stopped.is_set())
    context.exit(
        (MISMATCH if any(each.result is Result.MISMATCH for each in bad) else 0)
        | (UNREADABLE if any(each.result is Result.UNREADABLE for each in bad) else 0)
        | (UNFINISHED if stopped.is_set() else 0)
    )


def _chosen(census: Census, references: tuple[str, ...]) -> list[Item]:
    """Everything behind these models."""
    names: set[str] = set()
    for text in references:
        reference = Reference.parse(text)
        digest = reference.digest.hex if reference.digest is not None else None
        found = [m for m in census.models.values() if str(reference) in m.references or m.hex == digest]
        if not found:
            raise NotFound(f"{reference} is not on this node; `modelmount ls` shows what is")
        for model in found:
            names |= census.names_of(model)
    return [census.items[name] for name in sorted(names & census.items.keys())]


@contextmanager
def _stopping(stopped: threading.Event, seconds: float | None) -> Iterator[None]:
    """Set the event after so many seconds, and at SIGINT and SIGTERM."""

    def stop(number: int, frame: FrameType | None) -> None:
        # Not the event's own set: a handler may interrupt the very wait that it ends.
        threading.Thread(target=stopped.set, daemon=True).start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    timer = threading.Timer(seconds, stopped.set) if seconds is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _models(examined: Examined, census: Census) -> list[str]:
    return sorted(census.models[hex_digits].name for hex_digits in census.users().get(examined.item, ()))


def _sentence(examined: Examined, census: Census) -> str:
    text = (
        f"{examined.item}: {examined.result.value}: {examined.detail}; of {', '.join(_models(examined, census)) or '-'}"
    )
    if examined.quarantined is not None:
        volumes = [lease.volume_id for lease in examined.quarantined.leases]
        text += f"; moved to {examined.quarantined.place}"
        text += f"; shown by {', '.join(volumes)}: recreate their pods" if volumes else ""
    return text


def _plain(examined: Examined, census: Census) -> dict[str, Any]:
    put = examined.quarantined
    return {
        "item": examined.item,
        "result": examined.result.value,
        "detail": examined.detail,
        "models": _models(examined, census),
        "quarantine": str(put.place) if put is not None else None,
        "volumes": [lease.volume_id for lease in put.leases] if put is not None else [],
    }


def _say(say: output.Output, bad: list[dict[str, Any]], count: int, *, finished: bool) -> None:
    if say.json:
        say.object({"result": {"bytes": count, "finished": finished, "bad": bad}})
        return
    outcome = f"{len(bad)} bad" if bad else "all good"
    say.text(f"{output.size(count)} read, {outcome}{'' if finished else '; stopped before the end'}")
