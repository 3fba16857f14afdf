"""What a layer's descriptor says: its media type, its encoding, the path it claims. Shared by all formats.

Producers disagree on where the path is written. The order here reads all of them right: podman, for one, sets the OCI
title to the name of its local blob file and the ModelPack annotation to the real path.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from modelmount.errors import BadArtifact
from modelmount.formats import paths
from modelmount.formats.base import Encoding
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.manifest import Manifest, strict_json

TITLE = "org.opencontainers.image.title"
"""OCI image-spec, annotations.md."""
FILEPATHS = ("org.cncf.model.filepath", "org.cnai.model.filepath")
"""ModelPack model-spec since v0.0.7, and before."""
METADATA = ("org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json", "org.cnai.model.file.metadata")
"""JSON in a string; its `name` is a base name in modctl and a whole path in ramalama."""

EMPTY = "application/vnd.oci.empty.v1+json"
"""OCI image-spec, "Guidance for an Empty Descriptor": the two bytes `{}`; never a file."""
IMAGE_CONFIGS = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)

_ROOTFS = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar(\+(gzip|zstd))?"
    r"|docker\.image\.rootfs\.(foreign\.)?diff\.tar(\.(gzip|zstd))?)"
)
_ARCHIVE = re.compile(r"\.tar(?:[+.](?P<compression>[a-z0-9+-]+))?\Z")
_SINGLE = re.compile(r"\.raw\+(?P<compression>[a-z0-9+-]+)\Z")
_ARCHIVES = {None: Encoding.TAR, "gzip": Encoding.TAR_GZIP, "zstd": Encoding.TAR_ZSTD}
_SINGLES = {"gzip": Encoding.RAW_GZIP, "zstd": Encoding.RAW_ZSTD}
_SHOWN_TYPES = 3
_REGULAR = (0, 48)
"""Type flags of a regular file: a number in Go's tools, the ASCII code in RamaLama."""
_MOST_AROUND_A_FILE = 80 << 10
"""Headers of one entry, with all that may extend them, and the end of an archive filled up to a record."""


@functools.lru_cache(256)  # each layer's is asked for a dozen times, and a model has a handful of them
def media(media_type: str) -> str:
    """A media type for comparison: lower case, without parameters (`text/plain; charset=utf-8`)."""
    return media_type.partition(";")[0].strip().lower()


def kind(manifest: Manifest) -> str:
    """The artifact's type: artifactType, or the config's media type where there is none (OCI image-spec, "artifact
    usage").
    """
    return media(manifest.kind_type or "")


def config_type(manifest: Manifest) -> str:
    """The media type of the config, empty where the manifest has none."""
    return media(manifest.config.media_type) if manifest.config else ""


def is_rootfs(media_type: str) -> bool:
    """Whether it is a type that container images use for their file systems."""
    return _ROOTFS.fullmatch(media(media_type)) is not None


def encoding(media_type: str) -> Encoding:
    """How a blob of this type holds files, by the end of the type, whoever the vendor is. What doesn't speak of tar is
    the file itself.

    Raises BadArtifact for a compression that nobody here reads.
    """
    plain = media(media_type)
    for pattern, known in ((_ARCHIVE, _ARCHIVES), (_SINGLE, _SINGLES)):
        match = pattern.search(plain)
        if match:
            found = known.get(match["compression"])
            if found is None:
                raise BadArtifact(
                    f"layers of type {paths.show(plain)} cannot be read; push the model raw, as tar, or as tar with "
                    "gzip or zstd"
                )
            return found
    return Encoding.RAW


def filepath(descriptor: Descriptor) -> str | None:
    """The ModelPack path annotation, of either prefix."""
    for key in FILEPATHS:
        value = descriptor.annotations.get(key)
        if value:
            return value
    return None


def title(descriptor: Descriptor) -> str | None:
    """The OCI title."""
    return descriptor.annotations.get(TITLE) or None


def claimed_path(descriptor: Descriptor) -> str | None:
    """The path a layer claims, unchecked: ModelPack annotation, file metadata, title, descriptor name; None where it
    claims none.
    """
    return (
        filepath(descriptor) or _metadata_name(descriptor.annotations) or title(descriptor) or descriptor.name or None
    )


def shard(suffix: str, number: int, count: int) -> str:
    """A name for part `number` of `count` of a model without names. llama.cpp finds the parts by it, and only by it."""
    return f"model.{suffix}" if count == 1 else f"model-{number:05}-of-{count:05}.{suffix}"


def hint(descriptor: Descriptor) -> str | None:
    """The path an archive claims, where only its entries' names count; as `usable`."""
    return usable(claimed_path(descriptor))


def is_single_file(descriptor: Descriptor, path: str | None) -> bool:
    """Whether an archive says that it is the one file at `path`: by metadata of a regular file with this name, whose
    size is about the archive's. AIKit gives metadata to archives of many files too, with a list of them.
    """
    metadata = _metadata(descriptor.annotations)
    name, size = metadata.get("name"), metadata.get("size")
    return (
        path is not None
        and isinstance(name, str)
        and type(size) is int
        and name.rpartition("/")[2] == path.rpartition("/")[2]
        and metadata.get("typeflag", 0) in _REGULAR
        and "files" not in metadata
        and (encoding(descriptor.media_type) is not Encoding.TAR or 0 < descriptor.size - size <= _MOST_AROUND_A_FILE)
    )


def usable(claimed: str | None) -> str | None:
    """A path that decides nothing: checked, and None for what is no path at all.

    Such an annotation (`.`, `config/`, `../x`) is no reason to refuse the layer.
    """
    if claimed is None:
        return None
    try:
        return paths.check(claimed.removesuffix("/"))
    except BadArtifact:
        return None


def left_out(found: Sequence[Descriptor], what: str = "layers without a file name") -> tuple[str, ...]:
    """The warning about layers that give no files, `what` they are; none where there are none."""
    if not found:
        return ()
    types = sorted({media(descriptor.media_type) for descriptor in found})
    shown = ", ".join(paths.show(media_type) for media_type in types[:_SHOWN_TYPES])
    more = ", …" if len(types) > _SHOWN_TYPES else ""
    return (f"{what} were left out: {len(found)}, of type {shown}{more}",)


def _metadata_name(annotations: Mapping[str, str]) -> str | None:
    name = _metadata(annotations).get("name")
    return name if isinstance(name, str) else None


def _metadata(annotations: Mapping[str, str]) -> Mapping[str, Any]:
    """The file metadata that has a name; empty where there is none. What is no valid JSON is nothing a mount depends
    on.
    """
    for key in METADATA:
        text = annotations.get(key)
        if not text:
            continue
        try:
            metadata = strict_json(text.encode())
        except (BadArtifact, UnicodeEncodeError):
            continue
        if isinstance(metadata, dict) and isinstance(metadata.get("name"), str) and metadata["name"]:
            return metadata
    return {}
