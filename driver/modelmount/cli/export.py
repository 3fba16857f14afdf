"""`modelmount export`: a model into an image layout, to be carried to where no registry is."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click

from modelmount import config, wiring
from modelmount.cli.access import Access, access_options
from modelmount.cli.options import json_option, output_of, quiet_option, settings_options
from modelmount.cli.output import counted
from modelmount.cli.watching import watch
from modelmount.oci.reference import Reference
from modelmount.packaging.export import Export
from modelmount.packaging.layout import writer
from modelmount.pull.progress import human_bytes, human_seconds


@click.command(
    short_help="Put a model into an image layout.",
    epilog="""\b
Examples:
  modelmount export harbor.example.com/llm/llama3-70b:v1 /media/usb/models
  modelmount export harbor.example.com/llm/llama3-70b:v1 llama3.tar
  modelmount import llama3.tar                        on the other side
  modelmount push oci:/media/usb/models:v1 registry.internal:5000/llm/llama3-70b:v1

A directory may hold several models, which share what they have in common; what it has already is
not fetched again. A tar is one model, and appears once it is complete.
""",
)
@click.argument("reference", metavar="REFERENCE")
@click.argument("place", metavar="DIRECTORY|FILE.tar", type=click.Path(path_type=Path))
@access_options
@settings_options
@json_option
@quiet_option
@click.pass_context
def export(context: click.Context, reference: str, place: Path, effective: config.Effective, access: Access) -> None:
    """Fetch REFERENCE from its registry into an OCI image layout, byte for byte: what an index names, all of it.

    Every byte is compared with its digest. The store of this machine is neither needed nor changed.
    """
    output = output_of(context)
    named = Reference.parse(reference)
    settings = access.applied(effective.settings, named.repository)
    started = time.monotonic()
    with access.explained(), contextlib.closing(wiring.connect(settings)) as remote, writer(place) as layout:
        work = Export(remote.client, named, access.credential(remote.credentials, named.repository))
        try:
            done = watch(
                str(named),
                output,
                lambda _: work.run(layout),
                work.progress.snapshot,
                lambda _: f"interrupted; {place} isn't complete, the same command fetches what is missing",
            )
        finally:
            work.cancel.set()
    seconds = time.monotonic() - started
    if output.json:
        result = {
            "reference": str(named),
            "digest": str(done.digest),
            "layout": str(place),
            "bytes": done.bytes,
            "blobs": done.blobs,
            "fetched_bytes": done.fetched_bytes,
            "seconds": round(seconds, 3),
        }
        output.object({"result": result})
        return
    how = f"{human_bytes(done.fetched_bytes)} fetched in {human_seconds(seconds)}"
    output.text(
        f"{named} is in {place}: {human_bytes(done.bytes)} in {counted(done.blobs, 'blob')}, "
        f"{how if done.fetched_bytes else 'all of it was there'}",
        f"digest  {done.digest}",
    )
