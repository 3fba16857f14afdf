"""Container images that carry a model: modelcars as KServe, olot and Red Hat make them, RamaLama's images, and whatever
a Dockerfile copied to /models.

Sources: OCI image-spec, layer.md and config.md; Docker image manifest v2 schema 2; KServe, "Modelcars". eStargz and
zstd:chunked layers are ordinary gzip and zstd, and read as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from modelmount.errors import BadArtifact, InvalidRequest
from modelmount.formats import layers
from modelmount.formats.base import Encoding, Layer, Layout, Unpack
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest, strict_json

_OLOT = "olot."
"""Prefix of annotations that olot puts on the layers of its images, along with a title."""
_CONTENT_PATH, _CONTENT_TYPE = "olot.layer.content.inlayerpath", "olot.layer.content.type"
"""Where in the image the layer's one file or directory is."""
_READINGS = {
    Encoding.TAR: Encoding.ROOTFS_TAR,
    Encoding.TAR_GZIP: Encoding.ROOTFS_TAR_GZIP,
    Encoding.TAR_ZSTD: Encoding.ROOTFS_TAR_ZSTD,
}


class ContainerImage:
    """The image's file system, layer upon layer; of it what lies in /models, or all of it where it is nothing but the
    model (`stack` decides).
    """

    name = "container image"
    reads_config = True
    facts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "system": ("os",),
        "machine": ("architecture",),
        "created": ("created",),
        "authors": ("author",),
    }

    def matches(self, manifest: Manifest) -> bool:
        """By config and layer types together: Ollama has the config of an image, and early ORAS and CRI-O examples push
        named files with one.
        """
        return (
            layers.config_type(manifest) in layers.IMAGE_CONFIGS
            and not manifest.artifact_type
            and any(layers.is_rootfs(layer.media_type) for layer in manifest.layers)
            and not any(_is_named_file(layer) for layer in manifest.layers)
        )

    def layout(self, manifest: Manifest, config: bytes | None, unpack: Unpack = "auto") -> Layout:
        """Every layer that is part of the file system; attestations and the like are left out with a warning."""
        uncompressed = _diff_ids(config, len(manifest.layers))
        found: list[Layer] = []
        others: list[Descriptor] = []
        for number, descriptor in enumerate(manifest.layers):
            if not layers.is_rootfs(descriptor.media_type):
                others.append(descriptor)
                continue
            encoding = _READINGS[layers.encoding(descriptor.media_type)]
            # Of an uncompressed layer it is the layer's own digest, which is checked anyway.
            checked = uncompressed[number] if uncompressed and encoding is not Encoding.ROOTFS_TAR else None
            place = _place(descriptor)
            is_single = place is not None and descriptor.annotations.get(_CONTENT_TYPE) == "file"
            found.append(Layer(descriptor, encoding, place, uncompressed=checked, within=place, is_single=is_single))
        warnings = layers.left_out(others, "layers that are no part of the image's file system")
        return Layout(self.name, tuple(found), warnings, is_image=True)


def _place(layer: Descriptor) -> str | None:
    """The path in the image that is all of the layer, where olot says so."""
    return layers.usable(layer.annotations.get(_CONTENT_PATH, "").lstrip("/"))


def _is_named_file(layer: Descriptor) -> bool:
    return bool(layers.filepath(layer) or layers.title(layer)) and not any(
        key.startswith(_OLOT) for key in layer.annotations
    )


def _diff_ids(config: bytes | None, count: int) -> list[Digest]:
    """The digests of the layers before compression, where the config has one for each; empty where it doesn't: then
    nothing is compared.
    """
    try:
        document = strict_json(config or b"")
        rootfs = document.get("rootfs") if isinstance(document, dict) else None
        listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(listed, list) or len(listed) != count or not all(isinstance(each, str) for each in listed):
            return []
        return [Digest.parse(text) for text in listed]
    except (BadArtifact, InvalidRequest):
        return []
