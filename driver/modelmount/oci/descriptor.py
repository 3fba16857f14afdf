"""Descriptors (OCI image-spec, descriptor.md): what a manifest says about a blob, read strictly."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from modelmount.errors import BadArtifact, InvalidRequest
from modelmount.oci.digest import Digest

MAX_SIZE = 1 << 53
"""The largest integer that every JSON reader takes for what it is."""
MAX_MEDIA_TYPE_CHARACTERS = 255
"""RFC 6838 §4.2 allows 127 characters on each side of the slash."""
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Platform:
    """What an index entry is for. `variant` is empty where it doesn't matter."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        """`linux/arm64/v8`, as tools take it."""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One blob or manifest. `data` is the embedded content, already verified; `name` is Ollama's file name."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=lambda: _NONE, hash=False)
    artifact_type: str | None = None
    name: str | None = None
    platform: Platform | None = None
    data: bytes | None = field(default=None, repr=False)

    @classmethod
    def read(cls, value: object, what: str) -> Descriptor:
        """From parsed JSON; `what` says in messages which descriptor this is. Raises BadArtifact."""
        fields = mapping(value, what)
        media_type = text(fields, "mediaType", what)
        if not media_type or len(media_type) > MAX_MEDIA_TYPE_CHARACTERS:
            raise BadArtifact(f"{what} has no usable mediaType; push the artifact again with a current tool")
        try:
            digest = Digest.parse(text(fields, "digest", what))
        except InvalidRequest as e:
            raise BadArtifact(f"{what}: {e.message}") from e
        size = fields.get("size")
        if type(size) is not int or not 0 <= size <= MAX_SIZE:
            raise BadArtifact(f"{what} ({digest}) has no usable size; it must be a whole number from 0 to {MAX_SIZE}")
        if size == 0 and digest.hex != hashlib.new(digest.algorithm).hexdigest():
            raise BadArtifact(f"{what} ({digest}) says that it is empty, and its digest says that it isn't")
        return cls(
            media_type=media_type,
            digest=digest,
            size=size,
            annotations=annotation_map(fields, what),
            artifact_type=text(fields, "artifactType", what) or None,
            name=text(fields, "name", what) or None,
            platform=_platform(fields.get("platform"), what),
            data=_embedded(fields.get("data"), digest, size, what),
        )


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """`value` as a JSON object. Raises BadArtifact."""
    if not isinstance(value, dict):
        raise BadArtifact(f"{what} is not a JSON object")
    return value


def text(fields: Mapping[str, Any], key: str, what: str) -> str:
    """The string at `key`, empty where there is none. Raises BadArtifact for anything but a string."""
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadArtifact(f"{what}: {key} is not a string")
    return value


def annotation_map(fields: Mapping[str, Any], what: str) -> Mapping[str, str]:
    """The annotations at their usual key. Raises BadArtifact unless they map strings to strings."""
    value = fields.get("annotations")
    if value is None:
        return _NONE
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise BadArtifact(f"{what}: annotations must map strings to strings")
    return MappingProxyType(value)


def _platform(value: object, what: str) -> Platform | None:
    if value is None:
        return None
    fields = mapping(value, f"{what}: platform")
    return Platform(text(fields, "os", what), text(fields, "architecture", what), text(fields, "variant", what))


def _embedded(value: object, digest: Digest, size: int, what: str) -> bytes | None:
    if value is None:
        return None
    try:
        data = base64.b64decode(value if isinstance(value, str) else "?", validate=True)
    except (binascii.Error, ValueError) as e:
        raise BadArtifact(f"{what}: the embedded data is not base64") from e
    hasher = digest.hasher()
    hasher.update(data)
    if len(data) != size or hasher.hexdigest() != digest.hex:
        raise BadArtifact(f"{what}: the embedded data is not what its digest {digest} says")
    return data
