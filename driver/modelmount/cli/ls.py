"""`modelmount ls`: the models of this node."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from modelmount import config
from modelmount.cache import shelf as shelves
from modelmount.cache.census import Census
from modelmount.cli import catalogue, output
from modelmount.cli.options import json_option, output_of, settings_options
from modelmount.content.pins import Pin
from modelmount.pull.progress import human_seconds
from modelmount.volumes.leases import Lease

SHORT_DIGEST = len("sha256:") + 12


@click.command(
    short_help="List the models on this node.",
    epilog="""\b
Examples:
  modelmount ls
  modelmount ls --json | jq -r '.models[] | select(.in_use == []) | .digest'

SIZE is what a model's files take, or what it declares while it is INCOMPLETE; SHARED what of that on the disk other
models need too; SOURCE who sent it, most bytes first. IN USE BY names the pods, mount points and pins that hold it.
""",
)
@settings_options
@json_option
@click.pass_context
def ls(context: click.Context, effective: config.Effective) -> None:
    """List the models on this node: references, size, source, last use, and who uses them."""
    say = output_of(context)
    shelf = shelves.existing(effective.settings)
    found = [] if shelf is None else catalogue.entries(shelf.store, shelf.leases.walk())
    census = Census() if shelf is None else shelf.collector.reader.read()
    sizes = catalogue.sizes(census, census.groups())
    if say.json:
        say.object({"root": effective.settings.root, "models": [_plain(entry, sizes) for entry in found]})
    elif not found:
        say.note(f"no models in {effective.settings.root}; `modelmount pull` brings one here")
    else:
        rows = [row for entry in found for row in _rows(entry, sizes)]
        say.text(*output.columns(_HEADING, rows, right=frozenset({2, 3, 4})))


_HEADING = ("REFERENCE", "DIGEST", "SIZE", "SHARED", "FILES", "LAST USE", "SOURCE", "IN USE BY")
_Sizes = Mapping[str, tuple[int, int]]


def _rows(entry: catalogue.Entry, sizes: _Sizes) -> list[tuple[str, ...]]:
    """One line, and one more for each further reference or user."""
    files = "INCOMPLETE" if entry.files is None else str(entry.files)
    users = [*(_user(lease) for lease in entry.leases), *(_pin(pin) for pin in entry.pins)] or [output.UNKNOWN]
    references = list(entry.references) or [output.UNKNOWN]
    depth = max(len(users), len(references))
    _, shared = _disk(entry, sizes)
    size = (output.size(entry.size), output.size(shared))
    first = (entry.digest[:SHORT_DIGEST], *size, files, output.ago(entry.used_at), _source(entry))
    return [
        (
            references[n] if n < len(references) else "",
            *(first if n == 0 else ("",) * len(first)),
            users[n] if n < len(users) else "",
        )
        for n in range(depth)
    ]


def _disk(entry: catalogue.Entry, sizes: _Sizes) -> tuple[int | None, int | None]:
    """Bytes on the disk, alone and shared; unknown for a model that came or went meanwhile."""
    return sizes.get(entry.digest.partition(":")[2], (None, None))


def _source(entry: catalogue.Entry) -> str:
    """Who sent it, most bytes first."""
    return ", ".join(sorted(entry.sources, key=lambda name: (-entry.sources[name], name))) or output.UNKNOWN


def _user(lease: Lease) -> str:
    """Who holds it, as an admin looks for it."""
    if lease.owner == "cli":
        return lease.target
    if lease.namespace and lease.pod:
        return f"pod {lease.namespace}/{lease.pod}"
    return f"pod {lease.pod_uid}" if lease.pod_uid else f"volume {lease.volume_id}"


def _pin(pin: Pin) -> str:
    return "pinned" if pin.until is None else f"pinned for {human_seconds(pin.until - time.time())}"


def _plain(entry: catalogue.Entry, sizes: _Sizes) -> dict[str, Any]:
    exclusive, shared = _disk(entry, sizes)
    return {
        "digest": entry.digest,
        "references": list(entry.references),
        "format": entry.format,
        "complete": entry.files is not None,
        "bytes": entry.size,
        "exclusive": exclusive,
        "shared": shared,
        "sources": entry.sources,
        "files": entry.files,
        "tree": None if entry.tree is None else str(entry.tree),
        "last_use": round(entry.used_at),
        "in_use": [
            {
                "owner": lease.owner,
                "volume": lease.volume_id,
                "target": lease.target,
                "pod_uid": lease.pod_uid or None,
                "namespace": lease.namespace or None,
                "pod": lease.pod or None,
                "reference": lease.reference,
            }
            for lease in entry.leases
        ],
        "pins": [{"reference": pin.reference, "until": pin.until} for pin in entry.pins],
    }
