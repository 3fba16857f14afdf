"""Models as `ollama push` puts them into a registry, and as Hugging Face serves GGUF repositories.

Source: github.com/ollama/ollama, `server/images.go`. The manifest looks like a container image's; its layers' types say
what they are. None has a path, so that the names here are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import ClassVar, Final

from modelmount.errors import BadArtifact
from modelmount.formats import layers, paths
from modelmount.formats.base import Encoding, Layer, Layout, Unpack
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.manifest import Manifest, strict_json

PREFIX: Final = "application/vnd.ollama.image."
_NAMES: Final = {
    "projector": "mmproj.gguf",
    "adapter": "adapter.gguf",
    "draft": "draft.gguf",
    "template": "template",
    "system": "system",
    "prompt": "prompt",
    "params": "params.json",
    "messages": "messages.json",
    "license": "LICENSE",
}
"""Of layers of one kind the second is called `LICENSE.1`, `adapter.1.gguf`."""


class Ollama:
    """The model as GGUF or safetensors, and beside it what Ollama would do with it."""

    name = "Ollama"
    reads_config = True
    facts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "family": ("model_family",),
        "weights": ("model_format",),
        "parameters": ("model_type",),
        "quantization": ("file_type",),
    }

    def matches(self, manifest: Manifest) -> bool:
        """By any layer's type; the config's is that of a container image."""
        return any(layers.media(layer.media_type).startswith(PREFIX) for layer in manifest.layers)

    def layout(self, manifest: Manifest, config: bytes | None, unpack: Unpack = "auto") -> Layout:
        """Raises BadArtifact too for models that come as one layer for each tensor."""
        kinds = [layers.media(layer.media_type).removeprefix(PREFIX) for layer in manifest.layers]
        if "tensor" in kinds:
            raise BadArtifact(
                "this Ollama model comes as one layer for each tensor, which no engine loads from files; name a GGUF "
                "version of it"
            )
        count, suffix = kinds.count("model"), _format(config)
        seen: Counter[str] = Counter()
        done: set[tuple[str, Descriptor]] = set()
        found: list[Layer] = []
        others: list[Descriptor] = []
        for kind, descriptor in zip(kinds, manifest.layers, strict=True):
            if (kind, descriptor) in done:
                continue
            done.add((kind, descriptor))
            name: str | None
            if kind == "model":
                name = layers.shard(suffix, seen[kind] + 1, count)
            elif kind == "json":
                name = descriptor.name
            else:
                name = _numbered(_NAMES.get(kind), seen[kind])
            seen[kind] += 1
            if name:
                found.append(Layer(descriptor, Encoding.RAW, paths.check(name)))
            else:
                others.append(descriptor)
        return Layout(self.name, tuple(found), layers.left_out(others))


def _numbered(name: str | None, number: int) -> str | None:
    if name is None or not number:
        return name
    path = PurePosixPath(name)
    return f"{path.stem}.{number}{path.suffix}"


def _format(config: bytes | None) -> str:
    """What the config says that the model is; GGUF where it says nothing, as nearly all are."""
    try:
        document = strict_json(config or b"")
    except BadArtifact:
        document = None
    declared = document.get("model_format") if isinstance(document, dict) else None
    return "safetensors" if declared == "safetensors" else "gguf"
