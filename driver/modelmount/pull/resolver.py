"""From a reference to a manifest on disk, with the caller's access proved.

What is proved is access to one manifest digest in one repository with one credential. A manifest becomes a blob of the
store like any other; the record `refs/<sha256(reference)>` remembers what a reference meant, so that a known one is not
resolved again unless the policy says so.
"""

from __future__ import annotations

import hashlib
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from modelmount import formats
from modelmount.config import Auth
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, InvalidRequest, Precondition
from modelmount.formats import ANY, Choice
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Index, Manifest
from modelmount.oci.reference import Reference, Repository
from modelmount.pull.proofs import Proof, Proofs
from modelmount.registry.client import Document
from modelmount.registry.credentials import Credential
from modelmount.system import atomic

PullPolicy = Literal["IfNotPresent", "Always", "Never"]
INDEX_DEPTH = 3
LARGE_BYTES = 256 << 10
"""Documents from so many bytes on are read one at a time."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model of one repository: what jobs and views are keyed by. `manifest` is no index, but what was chosen."""

    repository: Repository
    manifest: Digest
    proof: Proof = field(default="off", compare=False)
    """By what its caller may read it."""

    def __str__(self) -> str:
        """Repository and digest, as an admin would pin it."""
        return f"{self.repository}@{self.manifest}"


class Ref(msgspec.Struct, frozen=True):
    """What a reference meant: the digest the registry answered with, and the manifest chosen from it when that was an
    index.
    """

    reference: str
    digest: str
    manifest: str
    at: float


def references(store: Store) -> Iterator[tuple[Path, Ref]]:
    """What references meant when they were last resolved here, and where that is written. No network, no proof."""
    for path in (store.root / "refs").glob("[0-9a-f]*"):
        try:
            yield path, msgspec.json.decode(path.read_bytes(), type=Ref)
        except (FileNotFoundError, msgspec.DecodeError):
            continue  # replaced or torn: resolved again when somebody needs it


def not_here(what: Reference | Model) -> Precondition:
    """What `Never` gets when something would have to be fetched."""
    return Precondition(
        f"{what} is not complete on this node and pullPolicy is Never; pull it first with `modelmount pull`, or use "
        "IfNotPresent"
    )


class Documents(Protocol):
    """Where manifests come from: a registry's client, or something in its place."""

    def exists(
        self, repository: Repository, digest: Digest, credential: Credential, what: str = ..., *, tag: str = ...
    ) -> None:
        """Return when `credential` may read the manifest, which was what `tag` meant."""

    def resolve(self, repository: Repository, tag: str, credential: Credential) -> Digest:
        """What the tag means now."""

    def manifest(self, repository: Repository, tag: str | Digest, credential: Credential, what: str = ...) -> Document:
        """A manifest or index, its bytes compared with the digest where one was asked for."""


class Resolver:
    """Resolves and proves. Thread-safe; blocks on the network for at most the client's document timeouts."""

    def __init__(self, store: Store, client: Documents, auth: Auth) -> None:
        """`auth` is the admin's word on who may read what is here."""
        self._store, self._client = store, client
        self._proofs = Proofs(store, auth)

    def resolve(self, reference: Reference, policy: PullPolicy, credential: Credential, choice: Choice = ANY) -> Model:
        """The manifest `reference` means now, on disk and available to its scope; of an index what `choice` says.

        Raises Precondition when the policy is Never and it isn't here, BadArtifact for manifests no reader can use, and
        whatever the registry's answer means (NotFound, Unauthenticated, Forbidden, Unavailable).
        """
        repository = reference.repository
        known = self._known(reference, choice)
        if known is None and policy == "Never":
            known = self._here(reference)
            if known is None:
                self._ask(reference, credential)
                raise not_here(reference)
        if known is not None and (policy != "Always" or reference.digest is not None):
            digest, manifest = Digest.parse(known.digest), Digest.parse(known.manifest)
            return Model(repository, manifest, self._prove(reference, digest, manifest, credential))
        top, found = self._fetch_top(reference, credential, known)
        manifest = self._choose(repository, top, found, credential, choice)
        self._remember(reference, choice, top, manifest)
        self._proofs.record(repository, top, manifest, credential)
        return Model(repository, manifest, "registry" if self._proofs.wanted else "off")

    def preload(self, reference: Reference, model: Model, choice: Choice = ANY) -> None:
        """Mark `model`, which this reference was resolved to, as put here by an admin. Raises OSError."""
        known = self._known(reference, choice)
        digest = Digest.parse(known.digest) if known is not None else model.manifest
        self._proofs.preload(model.repository, digest, model.manifest)

    def manifest(self, model: Model, credential: Credential) -> Manifest:
        """The parsed manifest of `model`, downloaded by digest when this scope doesn't have it."""
        document = self._document(model.repository, model.manifest, credential)
        if isinstance(document, Index):
            raise BadArtifact(f"{model} is an index where a manifest was expected; resolve the reference again")
        return document

    def known_manifest(self, reference: Reference) -> Digest | None:
        """What the reference meant when it was last resolved here, if its manifest is still present. No network, no
        proof.
        """
        known = self._known(reference, ANY)
        return Digest.parse(known.manifest) if known else None

    # -- inside

    def _prove(self, reference: Reference, digest: Digest, manifest: Digest, credential: Credential) -> Proof:
        """Refusals call it by its reference: who may not read it doesn't learn that, or as what, it is here."""
        repository = reference.repository

        def ask() -> None:
            tag = "" if reference.digest is not None else reference.tag or "latest"
            self._client.exists(repository, digest, credential, str(reference), tag=tag)

        return self._proofs.prove(repository, digest, manifest, credential, ask)

    def _ask(self, reference: Reference, credential: Credential) -> None:
        """Return when this credential may read what isn't here: only then its caller is told so."""
        if not self._proofs.wanted:
            return
        if reference.digest is not None:
            self._client.exists(reference.repository, reference.digest, credential, str(reference))
        else:
            self._client.resolve(reference.repository, reference.tag or "latest", credential)

    def _fetch_top(
        self, reference: Reference, credential: Credential, known: Ref | None
    ) -> tuple[Digest, Manifest | Index]:
        repository = reference.repository
        if reference.digest is not None:
            if self._proofs.wanted and self._store.has_blob(reference.digest, repository.scope):
                self._client.exists(repository, reference.digest, credential, str(reference))
            return reference.digest, self._document(repository, reference.digest, credential, str(reference))
        tag = reference.tag or "latest"
        if known is not None:
            now = self._client.resolve(repository, tag, credential)
            if self._store.has_blob(now, repository.scope):
                return now, self._document(repository, now, credential)
        fetched = self._client.manifest(repository, tag, credential)
        parsed = _parse(fetched.data, fetched.media_type)
        self._store.put_document(fetched.data, fetched.digest, repository.scope)
        return fetched.digest, parsed

    def _choose(
        self, repository: Repository, digest: Digest, document: Manifest | Index, credential: Credential, choice: Choice
    ) -> Digest:
        seen = {digest}
        for _ in range(INDEX_DEPTH):
            if isinstance(document, Manifest):
                return digest
            digest = formats.choose(document, platform.machine(), choice).digest
            if digest in seen:
                raise BadArtifact(f"the index of {repository} names itself at {digest}; push it again")
            seen.add(digest)
            document = self._document(repository, digest, credential)
        if isinstance(document, Manifest):
            return digest
        raise BadArtifact(f"indexes of {repository} are nested more than {INDEX_DEPTH} deep; name a manifest by digest")

    def _document(
        self, repository: Repository, digest: Digest, credential: Credential, called: str = ""
    ) -> Manifest | Index:
        if self._store.has_blob(digest, repository.scope):
            return _parse(self._store.read_document(digest))
        fetched = self._client.manifest(repository, digest, credential, called)
        parsed = _parse(fetched.data, fetched.media_type)
        self._store.put_document(fetched.data, digest, repository.scope)
        return parsed

    def _known(self, reference: Reference, choice: Choice) -> Ref | None:
        try:
            known = msgspec.json.decode(atomic.read_file(self._ref_path(reference, choice)), type=Ref)
            manifest = Digest.parse(known.manifest)
        except (FileNotFoundError, msgspec.DecodeError, InvalidRequest):
            return None  # what can't be read is resolved again
        return known if self._store.has_blob(manifest, reference.repository.scope) else None

    def _here(self, reference: Reference) -> Ref | None:
        """What a digest of which nobody remembers a resolution means: itself, if it is a manifest that is here."""
        digest = reference.digest
        if digest is None or not self._store.has_blob(digest, reference.repository.scope):
            return None
        if isinstance(_parse(self._store.read_document(digest)), Index):
            return None
        return Ref(str(reference), str(digest), str(digest), time.time())

    def _remember(self, reference: Reference, choice: Choice, digest: Digest, manifest: Digest) -> None:
        record = Ref(str(reference), str(digest), str(manifest), time.time())
        with self._store.locks.shared():
            atomic.write_file(self._ref_path(reference, choice), msgspec.json.encode(record))

    def _ref_path(self, reference: Reference, choice: Choice) -> str:
        text = f"{reference}\n{choice.key}" if choice.key else str(reference)
        return f"{self._store.root}/refs/{hashlib.sha256(text.encode()).hexdigest()}"


_reading = threading.Lock()


def _parse(data: bytes, media_type: str | None = None) -> Manifest | Index:
    """As `manifests.parse`. What a large document takes while it is read, it takes once, however many pods want one."""
    with _reading if len(data) > LARGE_BYTES else nullcontext():
        return manifests.parse(data, media_type)
