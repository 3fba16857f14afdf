"""Lists of referrers (OCI distribution-spec 1.1, "Listing Referrers"): what has a manifest as its subject."""

from __future__ import annotations

from modelmount.errors import BadArtifact
from modelmount.oci.descriptor import Descriptor, mapping
from modelmount.oci.manifest import MAX_ENTRIES, strict_json


def parse(data: bytes) -> list[Descriptor]:
    """What is listed, in its order; other than an index of models, a list may be empty. Raises BadArtifact."""
    listed = mapping(strict_json(data), "the list of referrers").get("manifests")
    if listed is None:
        return []
    if not isinstance(listed, list) or len(listed) > MAX_ENTRIES:
        raise BadArtifact(f"the list of referrers is no list of at most {MAX_ENTRIES} entries")
    return [Descriptor.read(value, f"referrer {number}") for number, value in enumerate(listed, 1)]
