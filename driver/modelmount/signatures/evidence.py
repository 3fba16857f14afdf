"""Finding what is said about a manifest, in its own repository: bounded in requests, bytes and time.

Sources: OCI distribution-spec 1.1, "Listing Referrers" with its tag schema for registries that don't list; cosign's
tags. Nothing is believed here; names of types only say how a piece is to be read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from modelmount.errors import BadArtifact, IntegrityError, NotFound, Unavailable
from modelmount.oci import manifest as manifests
from modelmount.oci import referrers
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest
from modelmount.oci.reference import Repository
from modelmount.policy.signing import Attestation, Demand, Signature
from modelmount.registry.client import MOST_PAGES, Document, Referrers
from modelmount.registry.credentials import Credential
from modelmount.signatures.messages import Kind, Piece

log = logging.getLogger(__name__)

SIMPLE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIMPLE_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
SIMPLE_ARTIFACT: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
ENVELOPE: Final = "application/vnd.dsse.envelope.v1+json"
BUNDLE: Final = "application/vnd.dev.sigstore.bundle"
PREDICATE: Final = "dev.sigstore.bundle.predicateType"
CREATED: Final = "org.opencontainers.image.created"

MOST_PIECES: Final = 64
"""So many are fetched, and so many of the listed manifests that may have some: a model has one or two signatures and a
handful of attestations.
"""
MOST_BYTES: Final = 16 << 20
"""All pieces together; each is a document, of which `manifest.MAX_DOCUMENT_BYTES` are read."""
SECONDS: Final = 30.0
"""After so long nothing more is asked for."""

_MAY_BE_MORE: Final = "there may be more than the {} pieces that are read"

_IN_NOBODYS_WAY: Final = (BadArtifact, IntegrityError, NotFound)
"""Anybody who may push may have put it there: what can't be had is no evidence, and keeps nobody from the rest."""


class Documents(Protocol):
    """Where evidence comes from: a registry's client."""

    def manifest(self, repository: Repository, tag: str | Digest, credential: Credential, what: str = ...) -> Document:
        """A manifest, its bytes compared with the digest where one was asked for."""

    def referrers(self, repository: Repository, digest: Digest, credential: Credential) -> Referrers | None:
        """The list of what refers to a manifest; None where the registry keeps none."""

    def document_blob(self, repository: Repository, descriptor: Descriptor, credential: Credential) -> bytes:
        """A small blob, verified."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What there is. `beyond` is the rest of a sentence about what else there is and wasn't read; mostly empty."""

    pieces: list[Piece]
    beyond: str = ""


def gather(
    client: Documents,
    repository: Repository,
    digest: Digest,
    demands: Sequence[Demand],
    credential: Credential,
    own: Descriptor | None = None,
) -> Evidence:
    """What the demands may be about. Requests: the list of referrers (one a page, two where its registry keeps none),
    two for each piece in it, and one for each of cosign's tags with one for each piece there. `own` is the model's own
    file with a signature of its files, where it has one.

    Raises what the registry's answers mean; what isn't there is no error.
    """
    found = _Search(client, repository, digest, demands, credential).run(own)
    if found.beyond:
        log.warning("of what is said about %s@%s not all was read: %s", repository, digest, found.beyond)
    return found


class _Search:
    def __init__(
        self,
        client: Documents,
        repository: Repository,
        digest: Digest,
        demands: Sequence[Demand],
        credential: Credential,
    ) -> None:
        self._client, self._repository, self._digest, self._credential = client, repository, digest, credential
        self._attestations = [each for each in demands if isinstance(each, Attestation)]
        forms = {form for each in demands if isinstance(each, Signature) for form in each.forms}
        self._simple, self._files = "simple" in forms, "model" in forms
        self._bundles = bool(forms & {"bundle", "model"}) or bool(self._attestations)
        self._pieces: list[Piece] = []
        self._looked_up = 0
        self._bytes = 0
        self._beyond = ""
        self._deadline = time.monotonic() + SECONDS

    def run(self, own: Descriptor | None) -> Evidence:
        if own is not None and self._files:
            self._pieces.append(Piece(kind="bundle", artifact=str(own.digest), data=self._blob(own)))
        for descriptor in self._listed():
            kind = descriptor.artifact_type or ""
            if kind.startswith(BUNDLE):
                if self._bundles:
                    self._take(self._manifest(descriptor.digest), kind)
            elif kind == SIMPLE_ARTIFACT:
                if self._simple:
                    self._take(self._manifest(descriptor.digest), kind)
            elif any(each.is_about(kind) and not each.are_named for each in self._attestations):
                self._take(self._manifest(descriptor.digest), kind)
        if self._simple:
            self._take_tag(f"{_tag(self._digest)}.sig")
        if self._attestations:
            self._take_tag(f"{_tag(self._digest)}.att")
        return Evidence(self._pieces, self._beyond)

    def _listed(self) -> list[Descriptor]:
        """What refers to the manifest, by the registry's list or, where it has none, by the tag that stands for one."""
        try:
            found = self._client.referrers(self._repository, self._digest, self._credential)
            if found is None:
                tagged = self._client.manifest(self._repository, _tag(self._digest), self._credential)
                return referrers.parse(tagged.data)
            if not found.is_whole:
                self._beyond = f"its registry's list goes on after {len(found.pages)} pages, and {MOST_PAGES} are read"
            return [each for page in found.pages for each in referrers.parse(page)]
        except _IN_NOBODYS_WAY as e:
            self._pass_over(e)
            return []

    def _take_tag(self, tag: str) -> None:
        if self._is_full:
            return
        self._look_at_the_clock()
        try:
            found = self._client.manifest(self._repository, tag, self._credential)
        except _IN_NOBODYS_WAY as e:
            self._pass_over(e)
            return
        self._take((_parsed(found), str(found.digest)), "")

    def _manifest(self, digest: Digest) -> tuple[Manifest | None, str]:
        if self._is_full or self._looked_up >= MOST_PIECES:
            self._beyond = self._beyond or _MAY_BE_MORE.format(MOST_PIECES)
            return None, ""
        self._looked_up += 1
        self._look_at_the_clock()
        try:
            return _parsed(self._client.manifest(self._repository, digest, self._credential)), str(digest)
        except _IN_NOBODYS_WAY as e:  # listed, and gone, or no manifest
            self._pass_over(e)
            return None, ""

    def _take(self, found: tuple[Manifest | None, str], kind: str) -> None:
        manifest, artifact = found
        if manifest is None:
            return
        for layer, piece in self._kinds(manifest, kind):
            if self._is_full or self._bytes + layer.size > MOST_BYTES:
                self._beyond = f"there is more than the {MOST_PIECES} pieces and {MOST_BYTES >> 20} MiB that are read"
                return
            self._look_at_the_clock()
            data = layer.data
            if data is None:
                data = self._blob(layer)
            self._bytes += len(data)
            predicate = manifest.annotations.get(PREDICATE, "") if piece != "report" else kind
            self._pieces.append(
                Piece(
                    kind=piece,
                    artifact=artifact,
                    data=data,
                    signature=layer.annotations.get(SIMPLE_SIGNATURE, ""),
                    predicate=predicate,
                    made_at=manifest.annotations.get(CREATED, ""),
                )
            )

    @property
    def _is_full(self) -> bool:
        """Whether no more is fetched."""
        full = len(self._pieces) >= MOST_PIECES
        if full and not self._beyond:
            self._beyond = _MAY_BE_MORE.format(MOST_PIECES)
        return full

    def _blob(self, layer: Descriptor) -> bytes:
        try:
            return self._client.document_blob(self._repository, layer, self._credential)
        except _IN_NOBODYS_WAY as e:
            self._pass_over(e)
            return b""

    def _pass_over(self, because: Exception) -> None:
        log.info("a piece of evidence about %s@%s can't be had: %s", self._repository, self._digest, because)

    def _kinds(self, manifest: Manifest, kind: str) -> Iterator[tuple[Descriptor, Kind]]:
        """Layers that are pieces of evidence, and of what kind."""
        for layer in manifest.layers:
            if layer.media_type == SIMPLE:
                if self._simple:
                    yield layer, "simple"
            elif layer.media_type == ENVELOPE:
                yield layer, "envelope"
            elif layer.media_type.startswith(BUNDLE):
                yield layer, "bundle"
            elif kind and not kind.startswith(BUNDLE) and kind != SIMPLE_ARTIFACT:
                yield layer, "report"

    def _look_at_the_clock(self) -> None:
        if time.monotonic() >= self._deadline:
            raise Unavailable(
                f"{self._repository.registry} takes longer than {SECONDS:.0f} s to send the signatures of "
                f"{self._repository}@{self._digest}"
            )


def _parsed(document: Document) -> Manifest | None:
    """What can't be read is no evidence."""
    try:
        found = manifests.parse(document.data, document.media_type)
    except BadArtifact:
        return None
    return found if isinstance(found, Manifest) else None


def _tag(digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.hex}"
