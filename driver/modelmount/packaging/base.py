"""What a way to package makes, and of what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from modelmount.errors import InvalidRequest
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import MAX_DOCUMENT_BYTES, MAX_LAYERS, OCI_MANIFEST
from modelmount.packaging.description import Description


@dataclass(frozen=True, slots=True)
class Part:
    """A file that is to be a layer."""

    path: str
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Package:
    """A config and a manifest, as they are sent."""

    config: bytes = field(repr=False)
    manifest: bytes = field(repr=False)

    @property
    def digest(self) -> Digest:
        """The manifest's, by which the model is known."""
        return Digest.of(self.manifest)


class Packager(Protocol):
    """A way to package: decides over names, sizes and digests; reads nothing, and always decides the same way."""

    def __call__(self, parts: Sequence[Part], about: Description, annotations: Mapping[str, str]) -> Package:
        """The package of these parts. Raises InvalidRequest when a registry would take no such manifest."""


def document(value: Mapping[str, Any]) -> bytes:
    """JSON as it is sent: keys in the order given, no spaces, ASCII."""
    return json.dumps(value, separators=(",", ":")).encode()


def manifest(
    artifact_type: str,
    config: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]],
    annotations: Mapping[str, str],
) -> bytes:
    """An OCI image manifest. Raises InvalidRequest when it is larger than registries take."""
    fields: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": config,
        "layers": layers,
    }
    if annotations:
        fields["annotations"] = dict(sorted(annotations.items()))
    data = document(fields)
    if len(layers) > MAX_LAYERS or len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidRequest(
            f"{len(layers)} files are too many for one artifact, whose manifest may have {MAX_DOCUMENT_BYTES} bytes "
            f"and {MAX_LAYERS} layers; leave some out with --exclude, or put them into an archive"
        )
    return data


def descriptor(media_type: str, digest: Digest, size: int, annotations: Mapping[str, str]) -> dict[str, Any]:
    """A descriptor as it stands in a manifest."""
    return {"mediaType": media_type, "digest": str(digest), "size": size, "annotations": dict(annotations)}
