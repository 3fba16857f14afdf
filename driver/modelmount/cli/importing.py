"""`modelmount import`, and `modelmount pull oci:PATH`: a model from an image layout, with no registry in reach."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from modelmount import config, wiring
from modelmount.cli.options import attributes_option, json_option, output_of, quiet_option, settings_options
from modelmount.cli.output import Output
from modelmount.cli.pulling import Watched, tell, watch
from modelmount.cli.pulling import pull as fetch
from modelmount.errors import InvalidRequest
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.reference import Reference
from modelmount.pull.resolver import Model
from modelmount.registry.credentials import Credential
from modelmount.snapshots.tree import Tree
from modelmount.sources.ocilayout import NAME, TAG, Layout
from modelmount.volumes.volume import VolumeSpec

PREFIX = "oci:"
"""Before the path of a layout, where a reference could stand; `oci://` is before references."""
_NO_NAME = re.compile(r"[^a-z0-9]+", re.ASCII)


@click.command(
    "import",
    short_help="Have a model on this node from an image layout.",
    epilog="""\b
Examples:
  modelmount import /media/usb/llama3 harbor.example.com/llm/llama3-70b:v1
  modelmount import /media/usb/models.tar:v1 harbor.example.com/llm/llama3-70b:v1
  modelmount import llama3.tar                        under the name it was exported with
  modelmount pull oci:/media/usb/llama3:v1            the same for `pull`

Every byte is verified, as in a pull. No registry is asked, and no proof of access is recorded:
whether a pod may have the model is decided as always, by auth.verification.
""",
)
@click.argument("source", metavar="LAYOUT[:TAG]")
@click.argument("references", metavar="[REFERENCE]...", nargs=-1)
@attributes_option
@settings_options
@json_option
@quiet_option
@click.pass_context
def import_(
    context: click.Context,
    source: str,
    references: tuple[str, ...],
    attributes: dict[str, str],
    effective: config.Effective,
) -> None:
    """Pull a model from LAYOUT, an OCI image layout in a directory or a tar, as if it came from REFERENCE.

    Pods that name REFERENCE find it here. Without one it gets the name that the layout has for it. TAG (or a digest)
    says which, where a layout has several.
    """
    run(output_of(context), source.removeprefix(PREFIX), references, attributes, effective)


def run(
    output: Output,
    source: str,
    references: Sequence[str],
    attributes: Mapping[str, str],
    effective: config.Effective,
    *,
    warm: bool = False,
) -> None:
    """Pull what `source` (a path, perhaps with a tag) means, under each of `references`, and print what it became."""
    layout, entry = find(source)
    specs = [
        VolumeSpec.parse({**attributes, "model": each, "pullPolicy": "Always"})
        for each in references or [_own_name(layout, entry)]
    ]
    for spec in specs:
        instead = wiring.FromLayout(layout, entry)
        with contextlib.closing(wiring.build(effective.settings, instead=instead)) as node:
            tell(output, spec.reference, _pull(node, spec, output, warm=warm), "read")


def _pull(node: wiring.Node, spec: VolumeSpec, output: Output, *, warm: bool) -> Watched[tuple[Model, Tree]]:
    return watch(
        node,
        spec.reference,
        output,
        lambda cancelled: fetch(node, spec, Credential.anonymous(), cancelled, warm=warm),
    )


def find(source: str) -> tuple[Layout, Descriptor]:
    """The layout that `source` names, a path perhaps with a tag or digest behind it, and the entry that is meant.

    Raises as reading a layout and choosing from it do.
    """
    path, wanted = _split(source)
    layout = Layout(path)
    return layout, layout.choose(wanted)


def _split(source: str) -> tuple[Path, str | None]:
    """Path and tag or digest: what exists is a path, whatever is in its name."""
    if os.path.lexists(source):
        return Path(source), None
    for mark in ("@", ":"):
        path, found, wanted = source.partition(mark) if mark == "@" else source.rpartition(mark)
        if found and wanted and os.path.lexists(path):
            return Path(path), wanted
    return Path(source), None


def _own_name(layout: Layout, entry: Descriptor) -> str:
    """The reference that the layout has for it, else `localhost/<name of the layout>:<tag>`, as podman calls what came
    from no registry.
    """
    for key in (NAME, TAG):
        with contextlib.suppress(InvalidRequest):
            return str(Reference.parse(entry.annotations.get(key, "")))
    name = _NO_NAME.sub("-", layout.path.absolute().name.lower().removesuffix(".tar")).strip("-")
    try:
        return str(Reference.parse(f"localhost/{name}:{entry.annotations.get(TAG) or 'latest'}"))
    except InvalidRequest as e:
        raise InvalidRequest(f"{layout.path} has no name for the model; give it one, REFERENCE") from e
