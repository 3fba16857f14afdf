"""`modelmount du`: what each model takes, and what would be free without it."""

from __future__ import annotations

from typing import Any

import click

from modelmount import config
from modelmount.cache import shelf as shelves
from modelmount.cache.census import Census, Model
from modelmount.cache.items import total
from modelmount.cache.shares import Quotas, Shares
from modelmount.cli import catalogue, output
from modelmount.cli.options import json_option, output_of, settings_options
from modelmount.content import pulls


@click.command(
    short_help="Say what each model takes.",
    epilog="""\b
Examples:
  modelmount du
  modelmount du --json | jq '.models[] | {name, exclusive}'

EXCLUSIVE is what only this model needs, SHARED what others need too; the sum of both is what it takes. Of namespaces,
USED counts against the QUOTA: each blob once, and in full for each of several that have it.
""",
)
@settings_options
@json_option
@click.pass_context
def du(context: click.Context, effective: config.Effective) -> None:
    """Say how many bytes of this node's disk each model takes: alone, and together with others."""
    say = output_of(context)
    shelf = shelves.existing(effective.settings)
    census, shares = (Census(), None) if shelf is None else shelf.collector.counted()
    reserved = 0 if shelf is None else pulls.outstanding_bytes(shelf.store)
    groups = census.groups()
    sizes = catalogue.sizes(census, groups)
    models = (model for model in census.models.values() if model.is_recorded or any(sizes[model.hex]))
    rows = sorted(((*sizes[model.hex], model) for model in models), key=lambda row: -(row[0] + row[1]))
    spaces = [] if shares is None else _namespaces(effective.settings, shares)
    partial = sum(each.bytes for each in census.partials.values())
    unnamed = total(census.items.values()) - sum(group.bytes for group in groups)
    if say.json:
        say.object(
            {
                "root": effective.settings.root,
                "models": [_plain(model, alone, shared) for alone, shared, model in rows],
                "namespaces": [{"name": name, "used": used, "quota": quota} for name, used, quota in spaces],
                "used": census.bytes,
                "partial": partial,
                "unnamed": unnamed,
                "trash_and_quarantine": census.other_bytes,
                "reserved": reserved,
            }
        )
        return
    lines = [(output.size(alone), output.size(shared), model.name) for alone, shared, model in rows]
    say.text(*output.columns(("EXCLUSIVE", "SHARED", "MODEL"), lines, right=frozenset({0, 1})))
    if any(name for name, _, _ in spaces):
        table = [
            (output.size(used), output.UNKNOWN if quota is None else output.size(quota), name or "(none)")
            for name, used, quota in spaces
        ]
        say.text(*output.columns(("USED", "QUOTA", "NAMESPACE"), table, right=frozenset({0, 1})))
    say.text(
        f"{output.size(census.bytes)} in all: {output.size(partial)} of downloads under way or interrupted, "
        f"{output.size(unnamed)} of leftovers, {output.size(census.other_bytes)} in trash and quarantine; "
        f"pulls will write {output.size(reserved)} more"
    )


def _namespaces(settings: config.Settings, shares: Shares) -> list[tuple[str, int, int | None]]:
    """Name, bytes and quota of each, the largest first; the name is empty for what nobody named one for."""
    quotas = Quotas.of(settings.cache)
    found = ((name, count, quotas.quota(name)) for name, count in shares.charged.items())
    return sorted(found, key=lambda each: (-each[1], each[0]))


def _plain(model: Model, alone: int, shared: int) -> dict[str, Any]:
    return {
        "name": model.name,
        "digest": model.digest,
        "references": sorted(model.references),
        "exclusive": alone,
        "shared": shared,
    }
