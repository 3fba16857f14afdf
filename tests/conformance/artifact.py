"""Artifacts in memory, byte for byte as their producers write them, and the tree the driver makes of them.

Shares no code with the driver but the calls under test: parse, decide, unpack, place.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modelmount import formats
from modelmount.formats.base import Encoding, Layout, Member
from modelmount.formats.selection import EVERYTHING, Selection
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest
from modelmount.snapshots import unpack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

OCI = "application/vnd.oci.image.manifest.v1+json"
FILEPATH = "org.cncf.model.filepath"
METADATA = "org.cncf.model.file.metadata+json"
TITLE = "org.opencontainers.image.title"
UNPACK = "io.deis.oras.content.unpack"
UNCOMPRESSED = "io.deis.oras.content.digest"
IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer or config with its bytes; `fields` are whatever else its descriptor has."""

    media_type: str
    content: bytes
    annotations: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """As manifests write it."""
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def descriptor(self) -> dict[str, Any]:
        """Its entry in a manifest."""
        found = {"mediaType": self.media_type, "digest": self.digest, "size": len(self.content), **self.fields}
        return found | ({"annotations": dict(self.annotations)} if self.annotations else {})


@dataclass(frozen=True, slots=True)
class Artifact:
    """A whole artifact. Neither schema version nor config are written for the retired artifact manifests."""

    layers: tuple[Blob, ...]
    config: Blob | None = Blob(EMPTY, b"{}", fields={"data": "e30="})
    artifact_type: str | None = None
    media_type: str = OCI

    def document(self) -> dict[str, Any]:
        """The manifest."""
        descriptors = [layer.descriptor() for layer in self.layers]
        found: dict[str, Any] = {"mediaType": self.media_type}
        if self.artifact_type is not None:
            found["artifactType"] = self.artifact_type
        if "artifact.manifest" in self.media_type:
            return {**found, "blobs": descriptors}
        if self.config is not None:
            found["config"] = self.config.descriptor()
        return {"schemaVersion": 2, **found, "layers": descriptors}

    def manifest(self) -> Manifest:
        """The manifest as the driver reads it."""
        return read(self.document())


def read(document: Mapping[str, Any]) -> Manifest:
    """A manifest out of a document."""
    found = manifests.parse(json.dumps(document).encode())
    assert isinstance(found, Manifest)
    return found


def decide(artifact: Artifact, selection: Selection = EVERYTHING) -> Layout:
    """As a pull decides: the config only where the manifest has one."""
    return formats.decide(artifact.manifest(), artifact.config.content if artifact.config else None, selection)


def tree(artifact: Artifact, directory: Path, selection: Selection = EVERYTHING) -> dict[str, bytes | None]:
    """Every path of the volume with its content, None for directories. Archives are unpacked in `directory`."""
    layout = decide(artifact, selection)
    blobs = {layer.digest.partition(":")[2]: layer.content for layer in artifact.layers}
    members: dict[Digest, list[Member]] = {}
    rules: dict[Digest, int] = {}
    for layer in layout.layers:
        digest = layer.descriptor.digest
        if layer.encoding is not Encoding.RAW and digest not in members:
            files = directory / digest.hex
            files.mkdir()
            (directory / f"{digest.hex}.blob").write_bytes(blobs[digest.hex])
            limits = unpack.Limits(1 << 30, 20_000)
            descriptor = os.open(files, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with (directory / f"{digest.hex}.blob").open("rb", buffering=0) as stream:
                    members[digest] = unpack.unpack(
                        stream, layer.encoding, descriptor, limits, lambda: False, uncompressed=layer.uncompressed
                    )
            finally:
                os.close(descriptor)
            rules[digest] = unpack.rules(layer.encoding)
    placement = formats.place(layout, members, rules, selection)
    found: dict[str, bytes | None] = dict.fromkeys(placement.directories)
    for file in placement.files:
        blob, _, member = file.source.partition("/")
        content = (directory / blob / member.rpartition("/")[2]).read_bytes() if member else blobs[blob]
        assert len(content) == file.size
        found[file.path] = content
    return found


# -- what producers write


def tar(*entries: tuple[str, bytes | None], kind: Literal[0, 1, 2] = tarfile.USTAR_FORMAT) -> bytes:
    """As Go's archive/tar writes it: two zero blocks at the end and no filling. Content None is a directory."""
    out = io.BytesIO()
    for name, content in entries:
        info = tarfile.TarInfo(name)
        info.type, info.mode = (tarfile.DIRTYPE, 0o755) if content is None else (tarfile.REGTYPE, 0o644)
        info.size = len(content or b"")
        out.write(info.tobuf(kind))
        out.write((content or b"") + bytes(-info.size % 512))
    return out.getvalue() + bytes(1024)


@dataclass(frozen=True, slots=True)
class Link:
    """An entry that leads elsewhere."""

    target: str
    hard: bool = False


@dataclass(frozen=True, slots=True)
class Special:
    """An entry that is neither file, directory nor link, by its type in the header."""

    kind: bytes


def rootfs(*entries: tuple[str, bytes | Link | Special | None], kind: Literal[0, 1, 2] = tarfile.PAX_FORMAT) -> bytes:
    """A layer of a container image: a `tar` that may also have links and special files."""
    out = io.BytesIO()
    for name, content in entries:
        if not isinstance(content, Link | Special):
            out.write(tar((name, content), kind=kind)[:-1024])
            continue
        info = tarfile.TarInfo(name)
        if isinstance(content, Link):
            info.type, info.linkname = tarfile.LNKTYPE if content.hard else tarfile.SYMTYPE, content.target
        else:
            info.type = content.kind
        out.write(info.tobuf(kind))
    return out.getvalue() + bytes(1024)


def gz(data: bytes) -> bytes:
    """Reproducible."""
    return gzip.compress(data, mtime=0)


def gz_members(data: bytes, size: int) -> bytes:
    """Many members of `size` bytes each, as eStargz and pigz write them."""
    return b"".join(gz(data[at : at + size]) for at in range(0, len(data), size))


def zst_frames(data: bytes, size: int) -> bytes:
    """Many frames of `size` bytes each between skippable ones, as zstd:chunked has them."""
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"table"
    return skippable + b"".join(zst(data[at : at + size]) + skippable for at in range(0, len(data), size))


def zst(data: bytes) -> bytes:
    """One frame."""
    return zstd.compress(data)


def digest_of(data: bytes) -> str:
    """As annotations write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
