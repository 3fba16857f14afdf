"""Plain files in a registry, as `oras push` and oras-py put them there: a layer for each file, named by its title.

Sources: oras-go `content/file`, oras-py `provider.py`, OCI image-spec "Guidelines for Artifact Usage". ORAS types a
plain file `application/vnd.oci.image.layer.v1.tar` unless its user says otherwise, so a media type alone says nothing
about what a blob holds; what does is below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from modelmount.errors import BadArtifact, InvalidRequest
from modelmount.formats import layers, paths
from modelmount.formats.base import Encoding, Layer, Layout, Naming, Unpack
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest

UNPACK = "io.deis.oras.content.unpack"
"""`true`: the layer is a directory, packed as tar with gzip whatever its media type."""
UNCOMPRESSED = "io.deis.oras.content.digest"
"""Digest of that directory's tar before compression."""

_PACKED_NAME = re.compile(r".+\.(tar|tgz|tzst|gz|zst)(\.[a-z0-9]+)?", re.IGNORECASE | re.ASCII | re.DOTALL)
_ENDS = {
    ".tar": Encoding.TAR,
    ".tar.gz": Encoding.TAR_GZIP,
    ".tgz": Encoding.TAR_GZIP,
    ".tar.zst": Encoding.TAR_ZSTD,
    ".tzst": Encoding.TAR_ZSTD,
}
_CURRENT_DIRECTORY = "."


class Files:
    """Comes last in the order of formats, and takes whatever has a named layer."""

    name = "ORAS files"
    reads_config = False
    facts: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def matches(self, manifest: Manifest) -> bool:
        """Always: what has no named layer is refused by its layout being empty."""
        return True

    def layout(self, manifest: Manifest, config: bytes | None, unpack: Unpack = "auto") -> Layout:
        """Layers without a name are no files: left out with a warning, as oras-go leaves them out. With `unpack` always
        what is called like an archive is one, unpacked at the root (AIKit packs whole models so); with never all are
        files.
        """
        found: list[Layer] = []
        unnamed: list[Descriptor] = []
        for descriptor in manifest.layers:
            if layers.media(descriptor.media_type) == layers.EMPTY:
                continue
            claimed = layers.claimed_path(descriptor)
            if claimed is None:
                unnamed.append(descriptor)
            elif unpack == "never":
                found.append(Layer(descriptor, Encoding.RAW, paths.check(claimed)))
            elif descriptor.annotations.get(UNPACK) == "true":
                found.append(_directory(descriptor, claimed))
            elif unpack == "always" and (packed := _packed(claimed)) is not None:
                found.append(Layer(descriptor, packed, paths.check(claimed)))
            elif layers.filepath(descriptor) and layers.encoding(descriptor.media_type).is_archive:
                # The first ModelPack artifacts: typed as image layers, without anything that says ModelPack but this.
                encoding = layers.encoding(descriptor.media_type)
                found.append(Layer(descriptor, encoding, layers.hint(descriptor), Naming.HINTED))
            elif _is_unmarked_directory(descriptor, claimed):
                path = paths.check(claimed)
                found.append(Layer(descriptor, Encoding.TAR_GZIP, path, Naming.WITHIN, within=path))
            else:
                found.append(Layer(descriptor, Encoding.RAW, paths.check(claimed)))
        return Layout(self.name, tuple(found), layers.left_out(unnamed))


def _directory(descriptor: Descriptor, claimed: str) -> Layer:
    # `oras push` of the directory it runs in gives this title, and entries that begin at the root.
    path = None if claimed == _CURRENT_DIRECTORY else paths.check(claimed)
    stated = descriptor.annotations.get(UNCOMPRESSED)
    try:
        uncompressed = Digest.parse(stated) if stated else None
    except InvalidRequest as e:
        raise BadArtifact(f"layer {descriptor.digest} states a bad digest of its content: {e.message}") from e
    naming = Naming.ROOT if path is None else Naming.WITHIN
    return Layer(descriptor, Encoding.TAR_GZIP, path, naming, uncompressed, within=path)


def _packed(claimed: str) -> Encoding | None:
    """What an archive's name says that it is."""
    return next((encoding for end, encoding in _ENDS.items() if claimed.lower().endswith(end)), None)


def _is_unmarked_directory(descriptor: Descriptor, claimed: str) -> bool:
    """oras-py marks a directory by the media type alone. The same type on something that is called an archive is a file
    that somebody packed himself and wants as it is.
    """
    return (
        layers.is_rootfs(descriptor.media_type)
        and layers.encoding(descriptor.media_type) is Encoding.TAR_GZIP
        and _PACKED_NAME.fullmatch(claimed) is None
    )
