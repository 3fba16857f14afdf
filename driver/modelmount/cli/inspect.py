"""`modelmount inspect`: what a model is, from its manifest and config alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from modelmount import config, formats, policy, wiring
from modelmount.cache import shelf as shelves
from modelmount.cli import output
from modelmount.cli.access import Access, access_options
from modelmount.cli.options import json_option, output_of, settings_options
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, ModelMountError
from modelmount.formats.base import Encoding, Layer, Layout
from modelmount.oci import manifest as manifests
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Index, Manifest
from modelmount.oci.reference import Reference, Repository
from modelmount.registry.credentials import Credential
from modelmount.signatures import survey
from modelmount.signatures.finder import Contents
from modelmount.signatures.survey import Said
from modelmount.snapshots import layers, unpack

_SHOWN_CHARACTERS = 80
INDEX_DEPTH = 3
"""How many indexes deep a manifest may lie; as for pods."""


@click.command(
    short_help="Show what a model is, without pulling it.",
    epilog="""\b
Examples:
  modelmount inspect harbor.example.com/llm/llama3-70b:v1
  modelmount inspect harbor.example.com/llm/llama3-70b:v1 --json | jq -r '.layers[].path'

No weights are downloaded and nothing is stored. HERE says what this node has of the model already, for this
repository. What an archive holds, and of which kind a file is (as a policy has it), is known of what is here.
Signatures and attestations are listed with who signed them, where this node checked that for its policy.
""",
)
@click.argument("reference", metavar="REFERENCE")
@access_options
@settings_options
@json_option
@click.pass_context
def inspect(context: click.Context, reference: str, effective: config.Effective, access: Access) -> None:
    """Show what REFERENCE is: digest, format, files and sizes, and what of it is here."""
    say = output_of(context)
    named = Reference.parse(reference)
    settings = access.applied(effective.settings, named.repository)
    with access.explained(), contextlib.closing(wiring.connect(settings)) as remote:
        asked = _Asked(remote, named.repository, access.credential(remote.credentials, named.repository))
        found = asked.look(named)
        existing = shelves.existing(settings)
        store = existing.store if existing is not None else None
        try:
            beside = asked.beside(found, store)
        except ModelMountError as e:
            beside = []
            say.note(f"its signatures and attestations can't be listed: {e}")
    parts = _parts(found, store, named.repository.scope)
    if say.json:
        say.object(_plain(named, found, parts) | {"statements": [_plain_statement(each) for each in beside]})
    else:
        say.text(*_lines(named, found, parts), *_statements(beside))


@dataclass(frozen=True, slots=True)
class _Found:
    """One artifact as the registry has it. `index` is the digest asked for where that was an index; `layout` is None
    for what can't be mounted, and `problem` says why.
    """

    digest: Digest
    size: int
    index: Digest | None
    manifest: Manifest
    layout: Layout | None
    problem: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Part:
    """A layer. `path` is None where it claims none; `files` are an archive's once it is unpacked here, None before.
    `kind` is that of a file that is here, empty before.
    """

    descriptor: Descriptor
    path: str | None
    archive: bool
    here: bool
    files: tuple[_File, ...] | None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class _File:
    """A file of an archive."""

    path: str
    size: int
    kind: str


class _Asked:
    """One repository, asked with one credential."""

    def __init__(self, remote: wiring.Remote, repository: Repository, credential: Credential) -> None:
        self._client, self._repository, self._credential = remote.client, repository, credential

    def look(self, reference: Reference) -> _Found:
        """Follow the reference to a manifest. Raises what the registry's answers mean."""
        document, size, digest = self._document(reference.digest or reference.tag or "latest")
        index = digest if isinstance(document, Index) else None
        for _ in range(INDEX_DEPTH):
            if isinstance(document, Manifest):
                break
            document, size, digest = self._document(formats.choose(document).digest)
        if isinstance(document, Index):
            raise BadArtifact(f"indexes are nested more than {INDEX_DEPTH} deep; name a manifest by digest")
        try:
            content = self._config(document)
            facts = formats.describe(document, content)
            return _Found(digest, size, index, document, formats.decide(document, content), "", facts)
        except BadArtifact as e:
            return _Found(digest, size, index, document, None, e.message, {})

    def beside(self, found: _Found, store: Store | None) -> list[Said]:
        """Signatures and attestations of the manifest."""
        contents = Contents.of(found.manifest)
        return survey.survey(self._client, store, self._repository, found.digest, contents, self._credential)

    def _document(self, name: str | Digest) -> tuple[Manifest | Index, int, Digest]:
        answer = self._client.manifest(self._repository, name, self._credential)
        return manifests.parse(answer.data, answer.media_type), len(answer.data), answer.digest

    def _config(self, manifest: Manifest) -> bytes | None:
        described = manifest.config
        if described is None or described.data is not None:
            return None if described is None else described.data
        return self._client.document_blob(self._repository, described, self._credential)


def _parts(found: _Found, store: Store | None, scope: str) -> list[_Part]:
    if found.layout is not None:
        return [_part(layer, store, scope) for layer in found.layout.layers]
    return [
        _Part(layer, None, False, store is not None and store.has_blob(layer.digest, scope), None)
        for layer in found.manifest.layers
    ]


def _part(layer: Layer, store: Store | None, scope: str) -> _Part:
    digest = layer.descriptor.digest
    if layer.encoding is Encoding.RAW:
        here = store is not None and store.has_blob(digest, scope)
        kind = _kind(layer.path or "", store.blob_path(digest)) if store is not None and here else ""
        return _Part(layer.descriptor, layer.path, False, here, None, kind)
    rules = None if store is None else store.unpacked_rules(digest, scope, unpack.versions(layer.encoding))
    if store is None or rules is None:
        return _Part(layer.descriptor, layer.path, True, False, None)
    directory = store.unpacked_path(digest, rules) / "files"
    files = tuple(
        _File(member.path, member.size, _kind(member.path or layer.path or "", directory / str(member.number)))
        for member in layers.members(store, digest, rules)
        if member.is_file
    )
    return _Part(layer.descriptor, layer.path, True, True, files)


def _kind(name: str, path: Path) -> str:
    """What kind of file this is, by its name in the model and its bytes here; empty where those are gone meanwhile."""
    try:
        with path.open("rb") as file:
            return policy.by_content(name, file.read(policy.HEAD_BYTES), path.stat().st_size)
    except FileNotFoundError:
        return ""


def _lines(reference: Reference, found: _Found, parts: list[_Part]) -> Iterator[str]:
    blobs = {part.descriptor.digest: part for part in parts}
    here = [part for part in blobs.values() if part.here]
    total = sum(part.descriptor.size for part in blobs.values())
    yield str(reference)
    facts = {
        "digest": str(found.digest),
        "index": "" if found.index is None else f"{found.index}, of which this platform's manifest is shown",
        "format": found.layout.format if found.layout is not None else f"cannot be mounted: {found.problem}",
        "type": found.manifest.kind_type or "",
        "config": _described(found.manifest.config),
        "size": f"{output.size(total)} in {output.counted(len(blobs), 'layer')}",
        "here": f"{output.size(sum(part.descriptor.size for part in here))} in {output.counted(len(here), 'layer')}",
    }
    yield from (f"  {name:<8}{text}" for name, text in facts.items() if text)
    if found.facts:
        yield ""
        yield from (f"  {name:<14}{text}" for name, text in found.facts.items())
    for warning in found.layout.warnings if found.layout is not None else ():
        yield f"  {'warning':<8}{warning}"
    yield ""
    heading = ("FILE", "SIZE", "HERE", "KIND", "MEDIA TYPE", "DIGEST")
    yield from output.columns(heading, [row for part in parts for row in _rows(part)], right=frozenset({1}))


def _rows(part: _Part) -> Iterator[tuple[str, ...]]:
    """The layer, then the files of an archive below it."""
    described = part.descriptor
    name = part.path or output.UNKNOWN
    shown = f"{name} (archive)" if part.archive else name
    here = "yes" if part.here else "no"
    yield (shown, output.size(described.size), here, part.kind, described.media_type, str(described.digest))
    for file in part.files or ():
        yield (f"  {file.path or name}", output.size(file.size), "", file.kind, "", "")


def _statements(beside: list[Said]) -> Iterator[str]:
    if not beside:
        return
    yield ""
    heading = ("BESIDE IT", "MADE", "SIGNED BY", "TYPE", "IN")
    yield from output.columns(heading, [_statement_row(each) for each in beside])


def _statement_row(said: Said) -> tuple[str, ...]:
    statement = said.statement
    by = ", ".join(signer.name for signer in said.signers)
    if by:
        by = f"{by} (rule {said.rule!r}, {_day(said.checked_at)})"
    elif statement.problem:
        by = statement.problem[:_SHOWN_CHARACTERS]
    else:
        by = "nobody" if statement.form == "report" else "not checked here"
    return (said.kind, _day(statement.made_at), by, statement.predicate or output.UNKNOWN, statement.artifact)


def _day(at: float | None) -> str:
    return output.UNKNOWN if at is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))


def _plain_statement(said: Said) -> dict[str, Any]:
    statement = said.statement
    return {
        "kind": said.kind,
        "form": statement.form,
        "type": statement.predicate or None,
        "artifact": statement.artifact,
        "made_at": statement.made_at,
        "signers": [signer.name for signer in said.signers],
        "rule": said.rule or None,
        "checked_at": said.checked_at,
        "problem": statement.problem or None,
    }


def _described(descriptor: Descriptor | None) -> str:
    return "" if descriptor is None else f"{descriptor.media_type}, {output.size(descriptor.size)}"


def _plain(reference: Reference, found: _Found, parts: list[_Part]) -> dict[str, Any]:
    config_blob = found.manifest.config
    return {
        "reference": str(reference),
        "digest": str(found.digest),
        "index": None if found.index is None else str(found.index),
        "media_type": found.manifest.media_type,
        "artifact_type": found.manifest.artifact_type,
        "config": None
        if config_blob is None
        else {"media_type": config_blob.media_type, "digest": str(config_blob.digest), "size": config_blob.size},
        "format": None if found.layout is None else found.layout.format,
        "problem": found.problem or None,
        "warnings": [] if found.layout is None else list(found.layout.warnings),
        "facts": dict(found.facts),
        "annotations": dict(found.manifest.annotations),
        "layers": [
            {
                "path": part.path,
                "size": part.descriptor.size,
                "archive": part.archive,
                "files": None
                if part.files is None
                else [{"path": file.path, "size": file.size, "kind": file.kind or None} for file in part.files],
                "here": part.here,
                "kind": part.kind or None,
                "media_type": part.descriptor.media_type,
                "digest": str(part.descriptor.digest),
            }
            for part in parts
        ],
    }
