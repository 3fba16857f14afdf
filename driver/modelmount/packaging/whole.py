"""All that belongs to an artifact: its documents, down to every manifest of an index, and the blobs they name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modelmount.errors import BadArtifact
from modelmount.oci import manifest as manifests
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest
from modelmount.registry.client import Document

INDEX_DEPTH: Final = 3
MAX_MANIFESTS: Final = 1000
"""Of one reference; a model has one, or one for each platform or precision."""


@dataclass(frozen=True, slots=True)
class Whole:
    """An artifact. `documents` are in an order in which each comes after those that it names; `blobs` has each once."""

    top: Document
    documents: tuple[Document, ...]
    blobs: tuple[Descriptor, ...]

    @property
    def bytes(self) -> int:
        """Of all of it."""
        return sum(each.size for each in self.blobs) + sum(len(each.data) for each in self.documents)


def collect(top: Document, fetch: Callable[[Digest], Document], what: str) -> Whole:
    """The whole of `top`; `fetch` gets the manifests that indexes name, and `what` names it in messages. Raises
    BadArtifact for what can't be read or has no end, and what `fetch` raises.
    """
    documents: dict[Digest, Document] = {}
    blobs: dict[Digest, Descriptor] = {}

    def visit(document: Document, depth: int) -> None:
        parsed = manifests.parse(document.data, document.media_type)
        if isinstance(parsed, Manifest):
            for each in (*((parsed.config,) if parsed.config is not None else ()), *parsed.layers):
                blobs.setdefault(each.digest, each)
        elif depth == INDEX_DEPTH:
            raise BadArtifact(f"indexes of {what} are nested more than {INDEX_DEPTH} deep")
        else:
            for entry in parsed.manifests:
                if entry.digest not in documents:
                    visit(fetch(entry.digest), depth + 1)
        if len(documents) == MAX_MANIFESTS:
            raise BadArtifact(f"{what} has more than {MAX_MANIFESTS} manifests")
        documents[document.digest] = document

    visit(top, 0)
    return Whole(top, tuple(documents.values()), tuple(blobs.values()))
