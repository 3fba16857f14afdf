"""Kinds of artifacts that this version knows and doesn't read, each refused by its name with what to do instead.

Asked before the formats: any of them would otherwise be taken for something else, and nobody would understand why it
fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelmount.errors import BadArtifact
from modelmount.formats import layers
from modelmount.oci.manifest import Manifest

_HELM = "application/vnd.cncf.helm."
_NYDUS_BLOB = "application/vnd.oci.image.layer.nydus.blob.v1"
_NYDUS_BOOTSTRAP = "containerd.io/snapshot/nydus-bootstrap"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind. `name` begins the sentence that refuses it, `remedy` ends it; `matches` never raises."""

    name: str
    remedy: str
    matches: Callable[[Manifest], bool]

    def refusal(self) -> BadArtifact:
        """The error."""
        return BadArtifact(f"{self.name} are not supported by this version of modelmount; {self.remedy}")


def refuse(manifest: Manifest) -> None:
    """Raise BadArtifact if the manifest is of a kind in `KINDS`."""
    for kind in KINDS:
        if kind.matches(manifest):
            raise kind.refusal()


def _declares(prefix: str) -> Callable[[Manifest], bool]:
    """Whether artifact type, config or any layer is of a type with this prefix."""

    def matches(manifest: Manifest) -> bool:
        types = [layers.kind(manifest), layers.config_type(manifest)]
        types += [layers.media(layer.media_type) for layer in manifest.layers]
        return any(declared.startswith(prefix) for declared in types)

    return matches


def _is_encrypted(manifest: Manifest) -> bool:
    return any(layers.media(layer.media_type).endswith("+encrypted") for layer in manifest.layers)


def _is_nydus(manifest: Manifest) -> bool:
    return any(
        layers.media(layer.media_type) == _NYDUS_BLOB or _NYDUS_BOOTSTRAP in layer.annotations
        for layer in manifest.layers
    )


KINDS = (
    Kind("encrypted layers", "push the model without encryption", _is_encrypted),
    Kind("Nydus images", "name the tag that the Nydus image was made from", _is_nydus),
    Kind("Helm charts", "name a model", _declares(_HELM)),
)
"""In the order in which they are asked: the first that matches names the artifact best."""
