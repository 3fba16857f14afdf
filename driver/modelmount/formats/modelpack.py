"""ModelPack, the CNCF model-spec, as its producers really write it: modctl, KitOps, Docker, AIKit, olot, ramalama.

Source: github.com/modelpack/model-spec, v0.0.1 (prefix `cnai`) to v0.0.7 (prefix `cncf`). The config is not read:
producers write anything from a full description to `{}`, and nothing that a mount needs is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from modelmount.formats import layers, paths
from modelmount.formats.base import Layer, Layout, Naming, Unpack
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.manifest import Manifest

_PREFIXES = ("application/vnd.cncf.model.", "application/vnd.cnai.model.")
_INDEX_ENTRY = ("io.opendatahub.modelcar.manifest.type", "modelpack")
"""How olot marks the ModelPack manifest between the container images of an index."""
_MODELCAR_ROOT = "models"
"""olot packs a ModelPack artifact from the layers of a modelcar, whose files all lie in /models."""


class ModelPack:
    """Raw layers are files at their path. Archive layers are unpacked at the volume's root, their entry names count,
    not their path: AIKit writes `config` or `docs` there, KitOps a directory or `.`.
    """

    name = "ModelPack"
    reads_config = False
    facts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "name": ("descriptor", "name"),
        "version": ("descriptor", "version"),
        "family": ("descriptor", "family"),
        "architecture": ("config", "architecture"),
        "weights": ("config", "format"),
        "parameters": ("config", "paramSize"),
        "precision": ("config", "precision"),
        "quantization": ("config", "quantization"),
        "inputs": ("config", "capabilities", "inputTypes"),
        "outputs": ("config", "capabilities", "outputTypes"),
        "languages": ("config", "capabilities", "languages"),
        "reasoning": ("config", "capabilities", "reasoning"),
        "tools": ("config", "capabilities", "toolUsage"),
        "reward": ("config", "capabilities", "reward"),
        "knowledge": ("config", "capabilities", "knowledgeCutoff"),
        "authors": ("descriptor", "authors"),
        "vendor": ("descriptor", "vendor"),
        "licenses": ("descriptor", "licenses"),
        "created": ("descriptor", "createdAt"),
        "source": ("descriptor", "sourceURL"),
        "datasets": ("descriptor", "datasetsURL"),
        "documentation": ("descriptor", "docURL"),
        "revision": ("descriptor", "revision"),
        "description": ("descriptor", "description"),
    }

    def matches(self, manifest: Manifest) -> bool:
        """By artifact type, by config type (before artifact types existed), or by any layer's type."""
        return any(
            declared.startswith(_PREFIXES) for declared in (layers.kind(manifest), layers.config_type(manifest))
        ) or any(_is_model_layer(layer) for layer in manifest.layers)

    def layout(self, manifest: Manifest, config: bytes | None, unpack: Unpack = "auto") -> Layout:
        """Layers that claim no path and aren't archives are no files: left out with a warning."""
        found: list[Layer] = []
        unnamed: list[Descriptor] = []
        for descriptor in manifest.layers:
            if layers.media(descriptor.media_type) == layers.EMPTY:
                continue
            encoding = layers.encoding(descriptor.media_type)
            claimed = layers.claimed_path(descriptor)
            if encoding.is_archive:
                path = layers.hint(descriptor)
                found.append(
                    Layer(descriptor, encoding, path, Naming.HINTED, is_single=layers.is_single_file(descriptor, path))
                )
            elif claimed is None:
                unnamed.append(descriptor)
            else:
                found.append(Layer(descriptor, encoding, paths.check(claimed)))
        return Layout(self.name, tuple(found), layers.left_out(unnamed), _lift(found))


def declared_by(entry: Descriptor) -> bool:
    """Whether an entry of an index is declared to be a ModelPack manifest."""
    key, value = _INDEX_ENTRY
    return layers.media(entry.artifact_type or "").startswith(_PREFIXES) or entry.annotations.get(key) == value


def _is_model_layer(descriptor: Descriptor) -> bool:
    """The artifacts of early 2025 typed their layers as image layers and said what they are in the descriptor's
    artifactType.
    """
    return layers.media(descriptor.media_type).startswith(_PREFIXES) or layers.media(
        descriptor.artifact_type or ""
    ).startswith(_PREFIXES)


def _lift(found: list[Layer]) -> str | None:
    """Only olot leaves out the path annotation; with it, a directory `models` is what the publisher wanted."""
    annotated = any(layers.filepath(layer.descriptor) for layer in found)
    archived = any(layer.encoding.is_archive for layer in found)
    return _MODELCAR_ROOT if archived and not annotated else None
