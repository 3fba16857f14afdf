"""ModelPack, the CNCF model-spec, as its producers really write it: modctl, KitOps, Docker, AIKit, olot, ramalama.

Source: github.com/modelpack/model-spec, v0.0.1 (prefix `cnai`) to v0.0.7 (prefix `cncf`). The config is not read:
producers write anything from a full description to `{}`, and nothing that a mount needs is in it.
"""

from __future__ import annotations

from modelmount.formats import layers, paths
from modelmount.formats.base import Encoding, Layer, Layout, Naming
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.manifest import Manifest

_PREFIXES = ("application/vnd.cncf.model.", "application/vnd.cnai.model.")
_MODELCAR_ROOT = "models"
"""olot packs a ModelPack artifact from the layers of a modelcar, whose files all lie in /models."""


class ModelPack:
    """Raw layers are files at their path. Archive layers are unpacked at the volume's root, their entry names count,
    not their path: AIKit writes `config` or `docs` there, KitOps a directory or `.`.
    """

    name = "ModelPack"
    reads_config = False

    def matches(self, manifest: Manifest) -> bool:
        """By artifact type, by config type (before artifact types existed), or by any layer's type."""
        return any(
            declared.startswith(_PREFIXES) for declared in (layers.kind(manifest), layers.config_type(manifest))
        ) or any(_is_model_layer(layer) for layer in manifest.layers)

    def layout(self, manifest: Manifest, config: bytes | None) -> Layout:
        """Layers that claim no path and aren't archives are no files: skipped with a warning."""
        found: list[Layer] = []
        warnings: list[str] = []
        for descriptor in manifest.layers:
            claimed = layers.claimed_path(descriptor)
            encoding = layers.encoding(descriptor.media_type)
            if encoding.is_archive:
                found.append(Layer(descriptor, encoding, _hint(claimed), Naming.HINTED))
            elif claimed is None:
                warnings.append(
                    f"layer {descriptor.digest} of type {layers.media(descriptor.media_type)} has no file name and "
                    "was left out"
                )
            else:
                found.append(Layer(descriptor, encoding, paths.check(claimed)))
        annotated = any(layers.filepath(descriptor) for descriptor in manifest.layers)
        archives = any(layer.encoding is not Encoding.RAW for layer in found)
        return Layout(
            self.name, tuple(found), tuple(warnings), lift=None if annotated or not archives else _MODELCAR_ROOT
        )


def _is_model_layer(descriptor: Descriptor) -> bool:
    """The artifacts of early 2025 typed their layers as image layers and said what they are in the descriptor's
    artifactType.
    """
    return layers.media(descriptor.media_type).startswith(_PREFIXES) or layers.media(
        descriptor.artifact_type or ""
    ).startswith(_PREFIXES)


def _hint(claimed: str | None) -> str | None:
    """An archive's path is only a hint: one that is no usable path (`.`, `config/`, `../x`) is no reason to refuse the
    layer.
    """
    if claimed is None or claimed in {".", "./"}:
        return None
    try:
        return paths.check(claimed.removesuffix("/"))
    except paths.BadArtifact:
        return None
