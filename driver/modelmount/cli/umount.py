"""`modelmount umount`: the end of a `modelmount mount`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from modelmount import config, wiring
from modelmount.cli.options import json_option, output_of, settings_options


@click.command(
    short_help="Take a model off a directory.",
    epilog="""\b
Examples:
  modelmount umount /mnt/llama3

The model stays on this node. What pods use is the kubelet's to unmount.
""",
)
@click.argument("directory", metavar="DIRECTORY", type=click.Path(path_type=Path))
@settings_options
@json_option
@click.pass_context
def umount(context: click.Context, directory: Path, effective: config.Effective) -> None:
    """Take the model off DIRECTORY that `modelmount mount` put there; files in use stay readable until closed."""
    output = output_of(context)
    with contextlib.closing(wiring.build(effective.settings)) as node:
        node.local.unmount(directory)
    if output.json:
        output.object({"result": {"target": str(directory.absolute())}})
    else:
        output.text(f"{directory} is unmounted")
