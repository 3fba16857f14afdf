"""KitOps ModelKits: one archive or file for each part that the Kitfile names.

Source: github.com/kitops-ml/kitops, v0.3 to v1.15. The config is the Kitfile as JSON. Since late 2024 an archive's
entries are named from the kit's root; before, from the directory of the part, and only the Kitfile says where that is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from modelmount.errors import BadArtifact
from modelmount.formats import layers, paths
from modelmount.formats.base import Layer, Layout, Naming, Unpack
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.manifest import Manifest, strict_json

PREFIX: Final = "application/vnd.kitops.modelkit."
_MODEL_LAYER: Final = re.compile(re.escape(PREFIX) + r"model\.v1\..*")
_LISTS: Final = ("code", "datasets", "docs", "prompts", "mcpServers")
"""Sections of a Kitfile in the order in which their layers come, after the model and its parts."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One entry of a Kitfile that has a layer. `digest` is empty in old kits."""

    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class _Kitfile:
    """What a mount needs of a Kitfile; `remote` are datasets that lie elsewhere."""

    model: str
    parts: tuple[_Part, ...]
    remote: tuple[str, ...]


class ModelKit:
    """Files as `kit unpack` makes them, but for the Kitfile itself, which is no layer."""

    name = "KitOps ModelKit"
    reads_config = True
    facts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "name": ("package", "name"),
        "version": ("package", "version"),
        "weights": ("model", "format"),
        "framework": ("model", "framework"),
        "authors": ("package", "authors"),
        "licenses": ("package", "license"),
        "description": ("package", "description"),
    }

    def matches(self, manifest: Manifest) -> bool:
        """By artifact type, config type or any layer's type."""
        declared = [layers.kind(manifest), layers.config_type(manifest)]
        declared += [layers.media(layer.media_type) for layer in manifest.layers]
        return any(media_type.startswith(PREFIX) for media_type in declared)

    def layout(self, manifest: Manifest, config: bytes | None, unpack: Unpack = "auto") -> Layout:
        """Raises BadArtifact too where the model itself is another ModelKit, which is not followed."""
        kitfile = _read(config)
        if kitfile.model and not any(_MODEL_LAYER.fullmatch(layers.media(one.media_type)) for one in manifest.layers):
            raise BadArtifact(
                f"this ModelKit builds on another one for its model, {paths.show(kitfile.model)}; name that one, or "
                "pack a kit with the model in it"
            )
        found: list[Layer] = []
        unnamed: list[Descriptor] = []
        for number, descriptor in enumerate(manifest.layers):
            if layers.media(descriptor.media_type) == layers.EMPTY:
                continue
            layer = _layer(descriptor, _part(kitfile.parts, number, descriptor, len(manifest.layers)))
            if layer is None:
                unnamed.append(descriptor)
            else:
                found.append(layer)
        return Layout(self.name, tuple(found), (*layers.left_out(unnamed), *_elsewhere(kitfile.remote)))


def _layer(descriptor: Descriptor, part: _Part | None) -> Layer | None:
    encoding = layers.encoding(descriptor.media_type)
    claimed = layers.claimed_path(descriptor) or (part.path if part is not None else None)
    if not encoding.is_archive:
        return None if claimed is None else Layer(descriptor, encoding, paths.check(claimed))
    if part is None or part.digest or layers.filepath(descriptor):
        path = layers.usable(claimed)
        return Layer(descriptor, encoding, path, within=path)
    path = part.path.rstrip("/").removeprefix("./")
    above = paths.check(path).rpartition("/")[0] if path not in {"", "."} else ""
    return Layer(descriptor, encoding, above or None, Naming.BELOW if above else Naming.ROOT, within=above or None)


def _part(parts: Sequence[_Part], number: int, descriptor: Descriptor, count: int) -> _Part | None:
    """The Kitfile's entry for a layer: by position, which is all that old kits have, or by digest."""
    digest = str(descriptor.digest)
    if len(parts) == count and parts[number].digest in {"", digest}:
        return parts[number]
    return next((part for part in parts if part.digest == digest), None)


def _read(config: bytes | None) -> _Kitfile:
    """Nothing, where the config is no Kitfile: newer kits have all that is needed in their layers."""
    try:
        document = strict_json(config or b"")
    except BadArtifact:
        document = None
    kitfile = document if isinstance(document, dict) else {}
    model = kitfile.get("model")
    entries = [model, *_entries(model, "parts")]
    for section in _LISTS:
        entries += _entries(kitfile, section)
    texts = [entry for entry in entries if isinstance(entry, dict)]
    local = [entry for entry in texts if not _text(entry, "remotePath")]
    remote = [_text(entry, "remotePath") for entry in texts if _text(entry, "remotePath")]
    parts = tuple(_Part(_text(entry, "path"), _text(entry, "digest")) for entry in local if _text(entry, "path"))
    return _Kitfile(_text(model, "path") if isinstance(model, dict) else "", parts, tuple(remote))


def _entries(fields: object, key: str) -> list[Any]:
    found = fields.get(key) if isinstance(fields, dict) else None
    return found if isinstance(found, list) else []


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else ""


def _elsewhere(remote: Sequence[str]) -> Iterator[str]:
    if remote:
        yield (
            f"datasets that lie outside of the registry were left out: {len(remote)}, for example "
            f"{paths.show(remote[0])}"
        )
