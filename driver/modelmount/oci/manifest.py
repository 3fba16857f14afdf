"""Manifests and indexes (OCI image-spec manifest.md and image-index.md, Docker's v2 schema 2, the retired artifact
manifests), read from the exact bytes of a registry's answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import msgspec

from modelmount.errors import BadArtifact
from modelmount.oci import jsontext
from modelmount.oci.descriptor import Descriptor, annotation_map, mapping, text

MAX_DOCUMENT_BYTES = 4 << 20
"""Most that a manifest, a config or a list of referrers may have (OCI distribution-spec, "Pushing Manifests")."""
MAX_CONTAINERS = 100_000
MAX_FIELDS = 250_000
"""Most objects and lists, and most fields of objects, that a document may have. In memory each takes many times its
bytes; a manifest with as many layers as are read has a fifth of them.
"""
MAX_LAYERS = 10_000
MAX_ENTRIES = 1_000

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ARTIFACT_MANIFESTS = (
    "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.cncf.oras.artifact.manifest.v1+json",
)
"""From before OCI 1.1: no config, and `blobs` where others have `layers`."""
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST, *ARTIFACT_MANIFESTS)
INDEXES = (OCI_INDEX, DOCKER_LIST)
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Manifest:
    """One artifact: its config, if it has one, and at least one layer."""

    media_type: str
    artifact_type: str | None
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(hash=False)

    @property
    def kind_type(self) -> str | None:
        """The artifact's type, or the config's media type where there is none (image-spec, "Guidelines for Artifact
        Usage").
        """
        return self.artifact_type or (self.config.media_type if self.config is not None else None)


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests to choose from."""

    media_type: str
    artifact_type: str | None
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(hash=False)


def parse(data: bytes, media_type: str | None = None) -> Manifest | Index:
    """Read a document. `media_type` is the answer's Content-Type and counts only where the document has none itself.

    Raises BadArtifact for what is malformed, ambiguous (manifest and index at once, CVE-2021-41190), too large, of a
    kind that isn't read, or empty.
    """
    fields = mapping(strict_json(data), "the manifest")
    declared = text(fields, "mediaType", "the manifest") or (media_type or "").partition(";")[0].strip().lower()
    kind = _kind(fields, declared)
    if kind in INDEXES:
        return Index(
            kind,
            text(fields, "artifactType", "the index") or None,
            _descriptors(fields, "manifests", "entry", MAX_ENTRIES),
            annotation_map(fields, "the index"),
        )
    config = fields.get("config")
    return Manifest(
        kind,
        text(fields, "artifactType", "the manifest") or None,
        None if config is None else Descriptor.read(config, "the config"),
        _descriptors(fields, "blobs" if kind in ARTIFACT_MANIFESTS else "layers", "layer", MAX_LAYERS),
        annotation_map(fields, "the manifest"),
    )


class _Named(msgspec.Struct, frozen=True, gc=False):
    digest: str


class _Naming(msgspec.Struct, frozen=True):
    config: _Named | None = None
    layers: list[_Named] = []
    blobs: list[_Named] = []


def named_digests(data: bytes) -> set[str]:
    """The hex digits of the config and the layers that a manifest names. For documents that `parse` took before: it is
    ten times as quick, and of others it finds at least as much, in digests that nobody checked. Raises BadArtifact
    where nothing can be read.
    """
    try:
        jsontext.check_depth(data)
        naming = msgspec.json.decode(data, type=_Naming)
        named = (*naming.layers, *naming.blobs, *([naming.config] if naming.config is not None else []))
        return {each.digest.partition(":")[2] for each in named}
    except ValueError as e:
        raise BadArtifact(f"the document is no manifest: {e}") from e


def strict_json(data: bytes) -> object:
    """JSON as RFC 8259 has it and no more: UTF-8 without a mark, no key twice, no NaN, no half of a surrogate pair.

    Raises BadArtifact.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise BadArtifact(f"a document of {len(data)} bytes is larger than the {MAX_DOCUMENT_BYTES} that are read")
    # Counted without reading, so that what stands in strings counts too: nobody writes so much of it.
    if data.count(b"{") + data.count(b"[") > MAX_CONTAINERS or data.count(b":") > MAX_FIELDS:
        raise BadArtifact(
            f"the document has more than the {MAX_CONTAINERS} objects and lists, or the {MAX_FIELDS} fields that are "
            "read; push the model in fewer pieces"
        )
    try:
        decoded = data.decode("utf-8")
        value = jsontext.loads(decoded, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except jsontext.TooDeep as e:
        raise BadArtifact("the document is nested too deeply") from e
    except (UnicodeDecodeError, ValueError) as e:
        start = ascii(data[:40].decode("latin-1"))
        raise BadArtifact(f"the document is not valid JSON in UTF-8 (it begins {start}); is this a registry?") from e
    if b"\\u" in data and any(not _is_text(string) for string in _strings(value)):
        raise BadArtifact("the document has half of a surrogate pair in a string, which is no text")
    return value


def _kind(fields: Mapping[str, Any], declared: str) -> str:
    layers, blobs, manifests = ("layers" in fields, "blobs" in fields, "manifests" in fields)
    if declared.startswith(_SCHEMA_1) or fields.get("schemaVersion") == 1 or "fsLayers" in fields:
        raise BadArtifact("Docker schema 1 manifests are too old to be read; push the model again with a current tool")
    if manifests and (layers or blobs or "config" in fields):
        raise BadArtifact("the document is a manifest and an index at once; push it again")
    if layers and blobs:
        raise BadArtifact("the document has both layers and blobs, and tools differ in which count; push it again")
    if not declared or declared in {"application/json", "application/octet-stream", "text/plain"}:
        declared = OCI_INDEX if manifests else OCI_MANIFEST if layers else ARTIFACT_MANIFESTS[0] if blobs else ""
    if declared not in MANIFESTS + INDEXES:
        shown = ascii(declared[:_SHOWN_CHARACTERS]) if declared else "missing"
        raise BadArtifact(
            f"the manifest's media type {shown} is not one that is read; known are {', '.join(MANIFESTS)}"
        )
    if manifests != (declared in INDEXES):
        raise BadArtifact(f"the document says that it is of type {declared} and is built otherwise; push it again")
    if declared not in ARTIFACT_MANIFESTS and (
        type(fields.get("schemaVersion")) is not int or fields["schemaVersion"] != 2
    ):
        raise BadArtifact("the manifest has no schemaVersion 2; push it again with a current tool")
    return declared


def _descriptors(fields: Mapping[str, Any], key: str, what: str, most: int) -> tuple[Descriptor, ...]:
    values = fields.get(key)
    if not isinstance(values, list) or not values:
        raise BadArtifact(f"the manifest has no {key}; there is nothing to mount")
    if len(values) > most:
        raise BadArtifact(f"the manifest has {len(values)} {key}; at most {most} are read")
    return tuple(Descriptor.read(value, f"{what} {number}") for number, value in enumerate(values, 1))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadArtifact("the document has the same key twice in one object; which one counts is anybody's guess")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise BadArtifact(f"the document contains {name}, which is not JSON")


def _strings(value: object) -> Iterator[str]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            pending += item


def _is_text(string: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in string)
