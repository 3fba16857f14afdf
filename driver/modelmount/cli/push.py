"""`modelmount push`: a directory as a model in a registry."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from modelmount import config, wiring
from modelmount.cli import importing
from modelmount.cli.access import Access, access_options
from modelmount.cli.options import json_option, output_of, quiet_option, settings_options
from modelmount.cli.output import counted
from modelmount.cli.watching import watch
from modelmount.errors import InvalidRequest
from modelmount.oci.reference import Reference
from modelmount.packaging import folder, modelpack, oras, remote
from modelmount.packaging.base import Packager
from modelmount.packaging.description import describe
from modelmount.packaging.files import Wanted
from modelmount.packaging.push import LayoutPush, Push, Pushed
from modelmount.pull.progress import Snapshot, human_bytes, human_seconds

FORMATS: Final[Mapping[str, Packager]] = {"modelpack": modelpack.package, "oras": oras.package}
"""Ways to package by the name that `--format` has for them."""
DEFAULT_FORMAT: Final = "modelpack"


def _annotations(context: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{value!r} is no KEY=VALUE", context, param)
        found[key] = text
    return found


@click.command(
    short_help="Put a directory into a registry as a model.",
    epilog="""\b
Examples:
  modelmount push ./llama3-70b harbor.example.com/llm/llama3-70b:v1
  modelmount push ./llama3-70b harbor.example.com/llm/llama3-70b:v1 --exclude 'original/'
  modelmount push s3://models/llama3-70b harbor.example.com/llm/llama3-70b:v1
  modelmount push oci:/media/usb/models:v1 registry.internal:5000/llm/llama3-70b:v1
  modelmount push ./tiny registry.internal:5000/llm/tiny:v2 --mount-from llm/tiny-base
  modelmount push ./tiny registry.internal:5000/llm/tiny:v2 --json | jq -r .result.digest

The same files are always the same digest. What the registry has already is not sent again, so that a push that was
interrupted goes on with the next file when it is run again.
""",
)
@click.argument("source", metavar="DIRECTORY")
@click.argument("reference", metavar="REFERENCE")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    default=DEFAULT_FORMAT,
    show_default=True,
    help="What to make of it: a ModelPack artifact, or plain files as ORAS has them.",
)
@click.option("--include", metavar="PATTERN", multiple=True, help="Push only these files, as in .gitignore.")
@click.option("--exclude", metavar="PATTERN", multiple=True, help="Leave these out; !PATTERN takes back.")
@click.option(
    "--annotation",
    "annotations",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_annotations,
    help="Annotate the manifest.",
)
@click.option(
    "--mount-from",
    "beside",
    metavar="REPOSITORY",
    multiple=True,
    help="Another repository of the registry that may have some of the files: those are not sent.",
)
@access_options
@settings_options
@json_option
@quiet_option
@click.pass_context
def push(
    context: click.Context,
    source: str,
    reference: str,
    form: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    annotations: dict[str, str],
    beside: tuple[str, ...],
    effective: config.Effective,
    access: Access,
) -> None:
    """Push the files of DIRECTORY to the registry as the model REFERENCE (host/path:tag), a layer for each.

    DIRECTORY may be one file, a URL that fsspec opens, or oci:PATH[:TAG], an image layout, which goes as it is. Links
    to files are followed. `.git`, `.cache` and `__pycache__` are left out.
    """
    output = output_of(context)
    named = Reference.parse(reference)
    if named.digest is not None or named.tag is None:
        raise InvalidRequest(f"{named}: a digest follows from the files and can't be chosen; name a tag")
    tag = named.tag
    settings = access.applied(effective.settings, named.repository)
    beside = tuple(_repository(each, named) for each in beside)
    from_layout = source.startswith(importing.PREFIX)
    if from_layout and (include or exclude or annotations or form != DEFAULT_FORMAT):
        raise InvalidRequest(
            "a layout is pushed as it is: nothing of it can be chosen, annotated or packaged otherwise"
        )
    wanted = Wanted(include, exclude)
    started = time.monotonic()
    with (
        access.explained(),
        contextlib.closing(wiring.uploads(settings, named.repository, access.secrets, beside)) as uploads,
    ):
        work: Push | LayoutPush
        if from_layout:
            work = LayoutPush(uploads, *importing.find(source.removeprefix(importing.PREFIX)))
        else:
            files = remote.files(source, wanted) if remote.is_url(source) else folder.files(Path(source), wanted)
            work = Push(uploads, files, FORMATS[form], describe(files), annotations)
        try:
            done = watch(str(named), output, lambda _: work.run(tag), work.progress.snapshot, lambda s: _kept(s, named))
        finally:
            work.cancel.set()
    sizes = [file.bytes_total for file in work.progress.snapshot().files]
    if output.json:
        output.object({"result": _plain(named, sizes, done, time.monotonic() - started)})
        return
    output.text(
        f"{named}: {human_bytes(sum(sizes))} in {counted(len(sizes), 'blob' if from_layout else 'file')}, "
        f"{_sent(done, time.monotonic() - started)}",
        f"digest  {done.digest}",
        f"pinned  {named.repository}@{done.digest}",
    )


def _repository(text: str, named: Reference) -> str:
    """A path in the registry of `named`, with or without the registry before it."""
    path = text.removeprefix(f"{named.repository.registry}/")
    return Reference.parse(f"{named.repository.registry}/{path}").repository.repository


def _sent(done: Pushed, seconds: float) -> str:
    others = [f"{done.blobs[how]} {how}" for how in ("mounted", "found") if done.blobs.get(how)]
    if not done.blobs.get("sent"):
        return "all of it was there" if not done.is_new else f"nothing to send ({', '.join(others)})"
    more = f" ({', '.join(others)} there)" if others else ""
    return f"{human_bytes(done.sent_bytes)} sent in {human_seconds(seconds)}{more}"


def _kept(snapshot: Snapshot, named: Reference) -> str:
    return (
        f"interrupted; {snapshot.files_ready} of {counted(len(snapshot.files), 'file')} of {named} are there, the same "
        "command goes on from there"
    )


def _plain(named: Reference, sizes: list[int], done: Pushed, seconds: float) -> dict[str, Any]:
    return {
        "reference": str(named),
        "digest": str(done.digest),
        "bytes": sum(sizes),
        "files": len(sizes),
        "sent_bytes": done.sent_bytes,
        "blobs": {how: done.blobs.get(how, 0) for how in ("sent", "mounted", "found")},
        "seconds": round(seconds, 3),
    }
