"""Plain files, as `oras push` puts them into a registry: a layer for each, with its path as the title.

Layers are typed as what they are, and not as image layers, which is ORAS' default and tells some readers to unpack
them. `oras pull` goes by the title.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Final

from modelmount.oci.digest import Digest
from modelmount.packaging.base import Package, Part, descriptor, manifest
from modelmount.packaging.description import Description

_ARTIFACT_TYPE: Final = "application/vnd.unknown.artifact.v1"
"""What ORAS declares where its user declares nothing."""
_FILE_TYPE: Final = "application/octet-stream"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_EMPTY: Final = b"{}"
"""The config that says nothing (image-spec, "Guidance for an Empty Descriptor")."""
_TITLE: Final = "org.opencontainers.image.title"


def package(parts: Sequence[Part], about: Description, annotations: Mapping[str, str]) -> Package:
    """A manifest with an empty config. There is no place in it for what the files say of the model."""
    config = {
        "mediaType": _EMPTY_TYPE,
        "digest": str(Digest.of(_EMPTY)),
        "size": len(_EMPTY),
        "data": base64.b64encode(_EMPTY).decode(),
    }
    layers = [descriptor(_FILE_TYPE, part.digest, part.size, {_TITLE: part.path}) for part in parts]
    return Package(_EMPTY, manifest(_ARTIFACT_TYPE, config, layers, annotations))
