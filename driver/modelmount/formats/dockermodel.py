"""Models as Docker Model Runner packages them: `docker model package`, and what Docker Hub has under ai/.

Source: github.com/docker/model-runner, the config types v0.1 (a layer's type says what it is) and v0.2 (a layer for
each file, with its path). Names of layers without a path are those that Model Runner gives them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Final

from modelmount.formats import layers, paths
from modelmount.formats.base import Layer, Layout, Unpack
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.manifest import Manifest

PREFIX: Final = "application/vnd.docker.ai."
_TYPED_CONFIG: Final = "application/vnd.docker.ai.model.config.v0.1+json"
_SHARDED: Final = {
    f"{PREFIX}gguf.v3": "gguf",
    "application/vnd.cncf.model.weight.v1.gguf": "gguf",
    f"{PREFIX}safetensors": "safetensors",
    "application/vnd.cncf.model.weight.v1.safetensors": "safetensors",
}
_NAMES: Final = {
    f"{PREFIX}gguf.v3.lora": "adapter.gguf",
    f"{PREFIX}gguf.v3.mmproj": "model.mmproj",
    f"{PREFIX}mmproj": "model.mmproj",
    f"{PREFIX}chat.template.jinja": "template.jinja",
    f"{PREFIX}dduf": "model.dduf",
}
_LICENSE: Final = f"{PREFIX}license"
_NAMED_BY_PATH: Final = ("safetensors", "model.file")
"""Types of v0.1 whose path annotation counts; others have their name whatever it says."""


class DockerModel:
    """What Model Runner keeps in its directory `model`, which becomes the root."""

    name = "Docker Model Runner"
    reads_config = False
    facts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "architecture": ("config", "architecture"),
        "weights": ("config", "format"),
        "parameters": ("config", "parameters"),
        "quantization": ("config", "quantization"),
        "context": ("config", "context_size"),
        "created": ("descriptor", "created"),
    }

    def matches(self, manifest: Manifest) -> bool:
        """By config type, artifact type or any layer's type."""
        declared = [layers.config_type(manifest), layers.kind(manifest)]
        declared += [layers.media(layer.media_type) for layer in manifest.layers]
        return any(media_type.startswith(PREFIX) for media_type in declared)

    def layout(self, manifest: Manifest, config: bytes | None, unpack: Unpack = "auto") -> Layout:
        """Licences without a path are no files, as in Model Runner; other layers without a name are left out with a
        warning.
        """
        typed = layers.config_type(manifest) == _TYPED_CONFIG
        shards = Counter(_SHARDED.get(layers.media(layer.media_type)) for layer in manifest.layers)
        seen: Counter[str | None] = Counter()
        found: list[Layer] = []
        unnamed: list[Descriptor] = []
        for descriptor in manifest.layers:
            media_type = layers.media(descriptor.media_type)
            kind = _SHARDED.get(media_type)
            seen[kind] += 1
            encoding = layers.encoding(media_type)
            claimed = None if typed and not media_type.endswith(_NAMED_BY_PATH) else layers.claimed_path(descriptor)
            name = claimed or _NAMES.get(media_type) or (kind and layers.shard(kind, seen[kind], shards[kind]))
            if encoding.is_archive:
                found.append(Layer(descriptor, encoding, layers.usable(layers.claimed_path(descriptor))))
            elif name:
                found.append(Layer(descriptor, encoding, paths.check(name)))
            elif media_type not in {_LICENSE, layers.EMPTY}:
                unnamed.append(descriptor)
        return Layout(self.name, tuple(found), layers.left_out(unnamed))
