"""`modelmount mount`: a model at a directory, without Kubernetes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from modelmount import config, wiring
from modelmount.cli.access import Access, access_options
from modelmount.cli.options import attributes_option, json_option, output_of, quiet_option, settings_options
from modelmount.cli.output import counted
from modelmount.cli.pulling import watch
from modelmount.errors import Conflict
from modelmount.oci.reference import Reference
from modelmount.pull.progress import human_bytes


@click.command(
    short_help="Show a model at a directory.",
    epilog="""\b
Examples:
  modelmount mount harbor.example.com/llm/llama3-70b:v1 /mnt/llama3
  modelmount mount harbor.example.com/llm/llama3-70b:v1 /mnt/llama3 --pull always
  modelmount mount harbor.example.com/llm/llama3-70b:v1 /mnt/llama3 --attribute files=vllm
  modelmount umount /mnt/llama3

The mount shows the same files until `modelmount umount` or a reboot, though the tag may move. With any --pull
the registry is asked whether you may read the model, as auth.verification says. Needs root.
""",
)
@click.argument("reference", metavar="REFERENCE")
@click.argument("directory", metavar="DIRECTORY", type=click.Path(path_type=Path))
@click.option(
    "--pull",
    type=click.Choice(["missing", "always", "never"]),
    default="missing",
    show_default=True,
    help="When to ask what the tag names now, and to fetch: if it isn't known here, always, or never.",
)
@attributes_option
@access_options
@settings_options
@json_option
@quiet_option
@click.pass_context
def mount(
    context: click.Context,
    reference: str,
    directory: Path,
    pull: str,
    attributes: dict[str, str],
    effective: config.Effective,
    access: Access,
) -> None:
    """Show the model REFERENCE read-only at DIRECTORY, which is made if it doesn't exist; pull it first if need be.

    Every byte is verified before it can be seen. Done already is success.
    """
    output = output_of(context)
    named = Reference.parse(reference)
    settings = access.applied(effective.settings, named.repository)
    attributes = {**attributes, "model": str(named), "pullPolicy": _POLICIES[pull]}
    with access.explained(), contextlib.closing(wiring.build(settings)) as node:
        try:
            done = watch(
                node,
                named,
                output,
                lambda cancelled: node.local.mount(attributes, directory, secrets=access.secrets, cancelled=cancelled),
            )
        except Conflict as e:
            raise Conflict(f"{e.message} (here, with `modelmount umount {directory}`)") from e
    lease = done.result
    if output.json:
        result = {
            "reference": str(named),
            "digest": lease.manifest,
            "target": lease.target,
            "bytes": lease.bytes,
            "files": lease.files,
            "fetched_bytes": done.fetched_bytes,
            "seconds": round(done.seconds, 3),
        }
        output.object({"result": result})
        return
    output.text(
        f"{named} is at {lease.target}: {human_bytes(lease.bytes)} in {counted(lease.files, 'file')}",
        f"digest  {lease.manifest}",
    )


_POLICIES = {"missing": "IfNotPresent", "always": "Always", "never": "Never"}
