"""Small manifests for the tests of this room: valid as they come, to be spoilt one field at a time."""

from __future__ import annotations

import json
from typing import Any

from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest

MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"


def descriptor(content: bytes = b"{}", media_type: str = WEIGHT, **more: Any) -> dict[str, Any]:
    """A descriptor of `content`, with the fields in `more` on top."""
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content), **more}


def document(**more: Any) -> dict[str, Any]:
    """An image manifest of one layer. Fields in `more` replace or add; those that are None are left out."""
    fields = {
        "schemaVersion": 2,
        "mediaType": manifests.OCI_MANIFEST,
        "config": descriptor(media_type=MODEL_CONFIG),
        "layers": [descriptor(b"weights")],
        **more,
    }
    return {key: value for key, value in fields.items() if value is not None}


def index(**more: Any) -> dict[str, Any]:
    """An index of one manifest, in the same way."""
    entry = descriptor(b"manifest", manifests.OCI_MANIFEST)
    fields = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": [entry], **more}
    return {key: value for key, value in fields.items() if value is not None}


def encoded(fields: object) -> bytes:
    """As a registry would send it."""
    return json.dumps(fields).encode()
