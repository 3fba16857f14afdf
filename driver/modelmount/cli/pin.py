"""`modelmount pin` and `modelmount unpin`: models that stay though nobody uses them."""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from typing import Any

import click

from modelmount import config, wiring
from modelmount.cache import shelf as shelves
from modelmount.cli.access import Access, access_options
from modelmount.cli.options import attributes_option, json_option, output_of, quiet_option, settings_options
from modelmount.cli.pulling import pull, watch
from modelmount.content import pins
from modelmount.content.pins import Pin
from modelmount.errors import NotFound
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Reference
from modelmount.volumes.volume import VolumeSpec

_SPAN = re.compile(r"(?P<number>[0-9]+)(?P<unit>[smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class _Until(click.ParamType[float]):
    """A moment: so long from now (`7d`, `12h`), or a date with or without a time, local where it names no zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        span = _SPAN.fullmatch(text)
        try:
            then = (
                time.time() + int(span["number"]) * _SECONDS[span["unit"]]
                if span is not None
                else datetime.datetime.fromisoformat(text).timestamp()
            )
            datetime.datetime.fromtimestamp(then).astimezone()
        except (ValueError, OverflowError, OSError):
            self.fail(f"{text!r} is no time; write 7d, 12h or 2030-01-31T18:00", param, ctx)
        if then <= time.time():
            self.fail(f"{text!r} is over already", param, ctx)
        return then


UNTIL = _Until()


@click.command(
    short_help="Keep a model on this node though nobody uses it.",
    epilog="""\b
Examples:
  modelmount pin harbor.example.com/llm/llama3:v1
  modelmount pin harbor.example.com/llm/llama3:v1 --fetch --until 7d
  modelmount unpin harbor.example.com/llm/llama3:v1

A pin holds the digest that the reference means now; when its tag moves, pin again. `modelmount ls` shows pins.
""",
)
@click.argument("reference", metavar="REFERENCE")
@click.option("--fetch", is_flag=True, help="Pull it first; without this it must be here.")
@click.option("--until", type=UNTIL, metavar="TIME", help="Until when: 7d, 12h, or a date. [default: until unpinned]")
@attributes_option
@access_options
@settings_options
@json_option
@quiet_option
@click.pass_context
def pin(
    context: click.Context,
    reference: str,
    attributes: dict[str, str],
    fetch: bool,
    until: float | None,
    effective: config.Effective,
    access: Access,
) -> None:
    """Keep the model REFERENCE here until `modelmount unpin`: no collection takes it, however long it is unused."""
    output = output_of(context)
    spec = VolumeSpec.parse({**attributes, "model": reference, "pullPolicy": "Always"})
    named = spec.reference
    absent = NotFound(f"{named} is not on this node; pull and pin it with --fetch")
    if not fetch and shelves.existing(effective.settings) is None:
        raise absent
    settings = access.applied(effective.settings, named.repository)
    with contextlib.closing(wiring.build(settings)) as node:
        if fetch:
            with access.explained():
                credential = access.credential(node.credentials, named.repository)
                done = watch(node, named, output, lambda cancelled: pull(node, spec, credential, cancelled))
            manifest: Digest | None = done.result[0].manifest
        else:
            manifest = _known(node, named)
        if manifest is None:
            raise absent
        made = Pin(str(named), str(manifest), time.time(), until)
        pins.add(node.store, made)
        if not fetch and _known(node, named) is None:  # a collection was faster
            pins.remove(node.store, made.reference)
            raise NotFound(f"{named} was removed from this node just now; pull and pin it with --fetch")
    if output.json:
        output.object({"result": {"reference": made.reference, "digest": made.manifest, "until": made.until}})
    else:
        output.text(f"{named} is pinned{_till(made)}", f"digest  {manifest}")


@click.command(
    short_help="End a pin.",
    epilog="""\b
Examples:
  modelmount unpin harbor.example.com/llm/llama3:v1

The model stays until its space is needed. Pins of the configuration (cache.pins) end there.
""",
)
@click.argument("reference", metavar="REFERENCE")
@settings_options
@json_option
@click.pass_context
def unpin(context: click.Context, reference: str, effective: config.Effective) -> None:
    """End the pin of REFERENCE, whatever digest it holds."""
    output = output_of(context)
    named = str(Reference.parse(reference))
    shelf = shelves.existing(effective.settings)
    gone = [] if shelf is None else pins.remove(shelf.store, named)
    if not gone:
        raise NotFound(f"{named} is not pinned on this node; `modelmount ls` shows what is")
    if output.json:
        output.object({"result": {"reference": named, "digests": [each.manifest for each in gone]}})
    else:
        output.text(f"{named} is not pinned any more")


def _known(node: wiring.Node, named: Reference) -> Digest | None:
    """The manifest it means here, when that is present."""
    known = node.resolver.known_manifest(named)
    if known is None and named.digest is not None and node.store.has_blob(named.digest, named.repository.scope):
        return named.digest
    return known


def _till(made: Pin) -> str:
    if made.until is None:
        return ""
    return f" until {datetime.datetime.fromtimestamp(made.until).astimezone():%Y-%m-%d %H:%M %Z}"
