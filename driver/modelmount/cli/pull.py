"""`modelmount pull`: have a model on this node."""

from __future__ import annotations

import contextlib

import click

from modelmount import config, wiring
from modelmount.cli import importing
from modelmount.cli.access import Access, access_options
from modelmount.cli.options import attributes_option, json_option, output_of, quiet_option, settings_options
from modelmount.cli.pulling import pull as fetch
from modelmount.cli.pulling import tell, watch
from modelmount.oci.reference import PREFIXES
from modelmount.volumes.volume import VolumeSpec


@click.command(
    short_help="Have a model on this node.",
    epilog="""\b
Examples:
  modelmount pull harbor.example.com/llm/llama3-70b:v1
  modelmount pull registry.internal:5000/llm/tiny@sha256:1f2e... --plain-http
  modelmount pull harbor.example.com/llm/secret:v1 --username robot --password-stdin <word.txt
  modelmount pull harbor.example.com/llm/llama3-70b:v1 --attribute files=vllm
  modelmount pull oci:/media/usb/llama3:v1
  modelmount pull harbor.example.com/llm/llama3-70b:v1 --json | tail -n1 | jq -r .result.tree

With --json every line is an object: {"progress": ...} now and then, {"result": ...} or {"error": ...} at the end.
""",
)
@click.argument("reference", metavar="REFERENCE")
@attributes_option
@click.option("--warm", is_flag=True, help="Leave what is fetched in memory too, for who reads it at once.")
@access_options
@settings_options
@json_option
@quiet_option
@click.pass_context
def pull(
    context: click.Context,
    reference: str,
    attributes: dict[str, str],
    warm: bool,
    effective: config.Effective,
    access: Access,
) -> None:
    """Pull the model REFERENCE (host/path:tag or host/path@digest) into the store, or, with oci:PATH[:TAG], one from an
    OCI image layout.

    A tag is resolved anew: from now on new pods here get what it names now, running ones keep what they have. What is
    here already is not fetched again, an interrupted pull goes on where it was, and a running driver shares the work.
    """
    output = output_of(context)
    if reference.startswith(importing.PREFIX) and not reference.startswith(PREFIXES):
        importing.run(output, reference.removeprefix(importing.PREFIX), (), attributes, effective, warm=warm)
        return
    spec = VolumeSpec.parse({**attributes, "model": reference, "pullPolicy": "Always"})
    named = spec.reference
    settings = access.applied(effective.settings, named.repository)
    with access.explained(), contextlib.closing(wiring.build(settings)) as node:
        credential = access.credential(node.credentials, named.repository)
        done = watch(node, named, output, lambda cancelled: fetch(node, spec, credential, cancelled, warm=warm))
    tell(output, named, done)
