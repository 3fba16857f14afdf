"""`modelmount gc`: make room by hand, or see what would go."""

from __future__ import annotations

import math
from typing import Any

import click

from modelmount import config
from modelmount.cache import bounds
from modelmount.cache import shelf as shelves
from modelmount.cache.collector import Collector, Plan
from modelmount.cache.order import Victim
from modelmount.cache.sweep import Swept
from modelmount.cli import output
from modelmount.cli.options import SIZE, json_option, output_of, settings_options
from modelmount.pull.progress import human_seconds


@click.command(
    short_help="Remove models that nobody needs.",
    epilog="""\b
Examples:
  modelmount gc --dry-run --all     what could go, in which order?
  modelmount gc --free 50GB         make that much room
  modelmount gc --all               everything that nobody holds

What is mounted, published, pinned or being pulled stays, and so does what was used within cache.grace_seconds.
""",
)
@click.option("--free", "wanted", type=SIZE, metavar="SIZE", help="Remove models until so much is freed, such as 50GB.")
@click.option("--all", "everything", is_flag=True, help="Remove every model that nobody holds.")
@click.option("--dry-run", is_flag=True, help="Only say what would go, in which order, and why.")
@settings_options
@json_option
@click.pass_context
def gc(
    context: click.Context, wanted: int | None, everything: bool, dry_run: bool, effective: config.Effective
) -> None:
    """Remove models, longest unused first, and what interrupted work has left.

    Without --free or --all: what no model needs, downloads that nobody goes on with, and as many models as it takes to
    get the store back within its bounds (cache.max_bytes, the watermarks).
    """
    if everything and wanted is not None:
        raise click.UsageError("--all and --free exclude each other")
    say = output_of(context)
    shelf = shelves.existing(effective.settings)
    if shelf is None:
        _say_plan(say, Plan((), 0, 0, 0, {}, 0)) if dry_run else _say_swept(say, Swept(), wanted=0)
        return
    size, inodes = _target(effective.settings, shelf.collector, wanted, everything=everything)
    if dry_run:
        _say_plan(say, shelf.collector.plan(size, inodes))
        return
    with shelf.collector.exclusively():
        _say_swept(say, shelf.collector.collect(size, inodes), wanted=size)


def _target(
    settings: config.Settings, collector: Collector, wanted: int | None, *, everything: bool
) -> tuple[float, int]:
    """Bytes and inodes to free."""
    if everything:
        return math.inf, 0
    if wanted is not None:
        return wanted, 0
    return bounds.excess(settings, bounds.read(settings), collector.reader.used_bytes())


def _say_plan(say: output.Output, plan: Plan) -> None:
    if say.json:
        say.object(
            {
                "frees": plan.frees,
                "garbage": plan.garbage,
                "evictable": plan.evictable,
                "used": plan.used,
                "held": plan.held,
                "victims": [_plain(victim) for victim in plan.victims],
            }
        )
        return
    if plan.victims:
        rows = [
            (
                victim.name,
                output.size(victim.frees),
                human_seconds(victim.idle_seconds),
                f"{victim.score:.0f}",
                ",".join(victim.namespaces) or output.UNKNOWN,
                victim.first or output.UNKNOWN,
            )
            for victim in plan.victims
        ]
        say.text(*output.columns(_HEADING, rows, right=frozenset({1, 2, 3})))
    say.text(f"{output.size(plan.frees)} would be freed, {output.size(plan.garbage)} of it leftovers")
    held = ", ".join(f"{output.size(count)} {reason}" for reason, count in sorted(plan.held.items())) or "nothing"
    say.text(f"in use: {output.size(plan.used)}; could go: {output.size(plan.evictable)}; held: {held}")


_HEADING = ("WOULD GO", "FREES", "UNUSED FOR", "SCORE", "NAMESPACES", "BEFORE OTHERS BECAUSE")


def _plain(victim: Victim) -> dict[str, Any]:
    return {
        "name": victim.name,
        "kind": "model" if victim.model is not None else "partial",
        "digest": victim.model.digest if victim.model is not None else None,
        "frees": victim.frees,
        "idle_seconds": round(victim.idle_seconds),
        "score": round(victim.score, 1),
        "namespaces": list(victim.namespaces),
        "first": victim.first or None,
    }


def _say_swept(say: output.Output, swept: Swept, *, wanted: float) -> None:
    """`wanted` are bytes, infinitely many for everything."""
    if say.json:
        counts = {"items": swept.items, "trees": swept.trees, "partials": swept.partials}
        say.object({"result": {"freed": swept.bytes, "models": swept.models, **counts}})
        return
    say.text(*swept.models)
    say.text(f"{output.size(swept.bytes)} freed: {output.counted(len(swept.models), 'model')} removed")
    rest = "`modelmount gc --all --dry-run` says what holds the rest"
    if swept.bytes < wanted < math.inf:
        say.text(f"less than the {output.size(int(wanted))} that were wanted; {rest}")
    elif wanted and not swept.models:
        say.text(rest)
