"""The client: is it there, what does a tag mean, a manifest, a blob from an offset on.

Each method asks the registry anew, wherever it was redirected to before: what storage it names is good for one request.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from modelmount.config import Settings
from modelmount.errors import BadArtifact, IntegrityError, InvalidRequest, ModelMountError, Unavailable
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import INDEXES, MANIFESTS, MAX_DOCUMENT_BYTES, OCI_INDEX
from modelmount.oci.reference import Repository
from modelmount.registry import answers, endpoint, ranges
from modelmount.registry.auth import Authenticator
from modelmount.registry.credentials import Credential
from modelmount.registry.recent import Recent
from modelmount.transport.body import Body
from modelmount.transport.pool import Answer, Pool, Request
from modelmount.transport.retry import Policy
from modelmount.transport.url import Url

ACCEPT: Final = ", ".join((*MANIFESTS, *INDEXES))
"""Everything that is read; some registries convert what isn't asked for, others answer 404."""

_NOT_ABOUT_HEAD: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of a HEAD that a GET would get as well."""
_NO_REFERRERS: Final = frozenset({400, 404, 405, 406})
"""404 by the specification; the others of registries from before it, as go-containerregistry takes them."""
DOCUMENT_TRIES: Final = 3
PATIENCE_SECONDS: Final = 5.0
"""A document that is not to be had is asked for so often, as long as no more than this is spent on it: what takes
longer is for the caller's own back-off, and a registry that is down costs nobody its time-out several times.
"""

KEPT_MOVED_TAGS: Final = 1024
MOST_PAGES: Final = 16
"""Of a list of referrers, which together may have MAX_DOCUMENT_BYTES."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index: its exact bytes, their digest, and the Content-Type it came with."""

    data: bytes = field(repr=False)
    media_type: str | None
    digest: Digest


@dataclass(frozen=True, slots=True)
class Referrers:
    """A list of referrers as the registry wrote it, in pages; not `is_whole` where it goes on beyond what is read."""

    pages: tuple[bytes, ...] = field(repr=False)
    is_whole: bool = True


class Client:
    """A client of any number of registries. Thread-safe; keeps connections and tokens, nothing else.

    A document, with its redirects and tokens, takes at most `pull.document_timeout_seconds`, and is asked for again
    after trouble that passes quickly; a blob takes as long until its first byte, and is asked for once. All methods
    raise NotFound, Unauthenticated, Forbidden or Unavailable as the registry's answer means.
    """

    def __init__(
        self,
        settings: Settings,
        pool: Pool | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        policy: Policy | None = None,
    ) -> None:
        """Connects to nothing yet. A `pool` that is given is closed by the client, too. `headers` are sent with each
        request for a blob; `policy` is how long to wait between tries.
        """
        self._settings, self._headers = settings, dict(headers or {})
        self._pool = pool or Pool(settings)
        self._authenticator = Authenticator(settings, self._pool)
        self._policy = policy or Policy()
        self._closing = threading.Event()
        self._moved: Recent[tuple[Repository, str, Digest], bool] = Recent(KEPT_MOVED_TAGS)

    def exists(
        self, repository: Repository, digest: Digest, credential: Credential, called: str = "", *, tag: str = ""
    ) -> None:
        """Return when this credential can read the manifest `digest`: one HEAD where the registry does HEAD, unless the
        admin wants a GET (`audit`). Messages name it as it was `called`.

        A `tag` that meant this digest is asked for instead, and one that means another by now isn't asked for again.
        Where the registry refuses, or doesn't say that it is this digest, a GET decides: its answer has reasons in it,
        or the manifest itself, and a page that asks people to log in is neither. Then BadArtifact and IntegrityError
        are possible as with `manifest`.
        """
        what = called or _name(repository, digest)
        began = time.monotonic()
        said: str | None = None
        if not self._settings.registry(repository.registry).audit:
            moved = (repository, tag, digest)
            by_tag = bool(tag) and self._moved.get(moved) is None
            if by_tag:
                said = self._patiently(
                    lambda deadline: self._head(repository, tag, credential, deadline, what, unless=digest)
                )
                if said is not None and said != str(digest):
                    self._moved.put(moved, True)  # or the registry doesn't tell digests
            if not by_tag or said not in {None, str(digest)}:
                said = self._patiently(lambda deadline: self._head(repository, digest, credential, deadline, what))
        if said != str(digest):
            self._patiently(lambda deadline: self._manifest(repository, digest, credential, deadline, what, began))

    def resolve(self, repository: Repository, tag: str, credential: Credential) -> Digest:
        """The digest that `tag` has now: the registry's word where a HEAD gives it, else that of the bytes of a GET."""
        what = _name(repository, tag)
        said = self._patiently(lambda deadline: self._head(repository, tag, credential, deadline, what))
        try:
            return Digest.parse(said or "")
        except InvalidRequest:
            return self.manifest(repository, tag, credential).digest

    def manifest(self, repository: Repository, tag: str | Digest, credential: Credential, called: str = "") -> Document:
        """Fetch a manifest or index; messages name it as it was `called`. Raises IntegrityError when the bytes aren't
        those of the digest that was asked for, BadArtifact when there are more than MAX_DOCUMENT_BYTES, Unavailable
        when a tag's aren't those of the digest that the registry names beside them: they were damaged or cut on the
        way.
        """
        what = called or _name(repository, tag)
        return self._patiently(lambda deadline: self._manifest(repository, tag, credential, deadline, what))

    def referrers(self, repository: Repository, digest: Digest, credential: Credential) -> Referrers | None:
        """The list of what refers to the manifest `digest`; None where the registry keeps no such lists
        (distribution-spec 1.1, "Unavailable Referrers API"). Further pages are read up to MOST_PAGES, from the
        registry's own origin only, within the time of one document and PATIENCE_SECONDS. Raises BadArtifact for a first
        page of more than MAX_DOCUMENT_BYTES.
        """
        what = f"the referrers of {_name(repository, digest)}"
        first = endpoint.referrers(self._settings, repository, digest)
        following: Url | None = first
        pages: list[bytes] = []
        left = MAX_DOCUMENT_BYTES
        end = time.monotonic() + self._settings.pull.document_timeout_seconds
        while following is not None and following.same_origin(first) and len(pages) < MOST_PAGES:
            request = Request("GET", following, repository.registry, what, {"Accept": OCI_INDEX})
            found = self._patiently(functools.partial(self._page, request, repository, credential, left, end))
            if found is None and not pages:
                return None
            data, following = found or (None, None)
            if data is None:
                return Referrers(tuple(pages), is_whole=False)
            pages.append(data)
            left -= len(data)
        return Referrers(tuple(pages), is_whole=following is None)

    def document_blob(self, repository: Repository, descriptor: Descriptor, credential: Credential) -> bytes:
        """A small blob whole, verified. Raises BadArtifact when it says to be larger than MAX_DOCUMENT_BYTES,
        IntegrityError when its bytes aren't those of its digest.
        """
        what = _blob_name(repository, descriptor.digest)
        if descriptor.size > MAX_DOCUMENT_BYTES:
            raise BadArtifact(f"{what} has {descriptor.size} bytes; at most {MAX_DOCUMENT_BYTES} are read")
        deadline = time.monotonic() + self._settings.pull.document_timeout_seconds
        with self.blob(repository, descriptor.digest, 0, credential) as body:
            data = body.read_all(descriptor.size, deadline)
        hasher = descriptor.digest.hasher()
        hasher.update(data or b"")
        if data is None or hasher.hexdigest() != descriptor.digest.hex:
            raise IntegrityError(f"{repository.registry} served wrong bytes for {what}; push it again")
        return data

    def blob(
        self,
        repository: Repository,
        digest: Digest,
        offset: int,
        credential: Credential,
        end: int | None = None,
        *,
        query: str = "",
    ) -> Body:
        """Open a blob, from `offset` up to `end` (None: its own) where the registry does ranges: the body's `offset`
        says where its bytes begin, the asked one or 0, and `total` how many bytes the whole blob has, where that is
        known. A registry that doesn't do ranges sends everything. `query` is for mirrors that want to be told more.

        Nothing is verified: bytes are checked where they are kept. Reading raises Unavailable; the caller closes.
        """
        if offset or end is not None:
            answer = self._blob_answer(repository, digest, offset, credential, end, query)
            span = ranges.read(answer.header("content-range"))
            if answer.status == 206 and span is not None and span.fits(offset, answer.body.length):
                answer.body.offset, answer.body.total = offset, span.total
                return answer.body
            if answer.status not in {206, 416}:
                return self._whole(answer, repository, digest, credential)
            answer.body.close()  # it does ranges, but not rightly: one more try without
        answer = self._blob_answer(repository, digest, 0, credential, None, query)
        return self._whole(answer, repository, digest, credential)

    def close(self) -> None:
        """End all connections: whoever waits for a registry gets Unavailable at once. Twice is harmless."""
        self._closing.set()
        self._pool.close()

    # -- inside

    def _patiently(self, ask: Callable[[float], T]) -> T:
        """What `ask` returns, given a deadline; asked again when it raises Unavailable for trouble: a word on what was
        asked, however odd, stays the same.
        """
        began, failures = time.monotonic(), 0
        deadline = began + self._settings.pull.document_timeout_seconds
        while True:
            try:
                return ask(deadline)
            except Unavailable as e:
                if e.answered:
                    raise
                failures += 1
                wait = self._policy.delay(failures, e.retry_after)
                if failures == DOCUMENT_TRIES or time.monotonic() + wait > min(deadline, began + PATIENCE_SECONDS):
                    raise
                if self._closing.wait(wait):
                    raise

    def _manifest(
        self,
        repository: Repository,
        tag: str | Digest,
        credential: Credential,
        deadline: float,
        what: str,
        since: float = math.inf,
    ) -> Document:
        request = self._about_manifest("GET", repository, tag, what)
        answer, data = self._read(request, repository, credential, deadline, since=since)
        if data is None:
            raise BadArtifact(f"{what}: its manifest is larger than the {MAX_DOCUMENT_BYTES} bytes that are read")
        digest = _verified(data, tag, what, answer.header("docker-content-digest"))
        return Document(data, answer.header("content-type"), digest)

    def _page(
        self, request: Request, repository: Repository, credential: Credential, most: int, end: float, deadline: float
    ) -> tuple[bytes | None, Url | None] | None:
        """One page of referrers, None for one of more than `most` bytes, and where the next one is; None where there is
        no such list.
        """
        answer, data = self._read(request, repository, credential, min(end, deadline), most, absent=_NO_REFERRERS)
        if answer.status in _NO_REFERRERS:
            return None
        if data is None and most == MAX_DOCUMENT_BYTES:
            raise BadArtifact(f"{request.what} are more than the {most} bytes that are read")
        return data, endpoint.following(request.url, answer.header_values("link"))

    def _read(
        self,
        request: Request,
        repository: Repository,
        credential: Credential,
        deadline: float,
        most: int = MAX_DOCUMENT_BYTES,
        *,
        absent: frozenset[int] = frozenset(),
        since: float = math.inf,
    ) -> tuple[Answer, bytes | None]:
        """The answer, closed, and its body; None of one that has more than `most` bytes, or whose status is `absent`.
        Raises what any other status but 200 means.
        """
        with self._authenticator.send(request, repository, credential, deadline, since=since) as answer:
            if answer.status in absent:
                return answer, None
            if answer.status != 200:
                raise self._meaning(answer, request.what, repository, credential)
            return answer, answer.body.read_all(most, deadline)

    def _head(
        self,
        repository: Repository,
        tag: str | Digest,
        credential: Credential,
        deadline: float,
        what: str,
        *,
        unless: Digest | None = None,
    ) -> str | None:
        """What the registry says the digest is, empty where it says nothing; None when only a GET can tell more.

        `unless` it is this one: a registry that knows conditions need not read the manifest then (RFC 9110, 13.1.2; the
        ETag of a manifest is its digest). For tags only: of a digest some say that it hasn't changed without looking
        whether it is there.
        """
        request = self._about_manifest("HEAD", repository, tag, what, unless)
        with self._authenticator.send(request, repository, credential, deadline) as answer:
            if answer.status in _NOT_ABOUT_HEAD:
                raise self._meaning(answer, what, repository, credential)
            if answer.status == 304 and unless is not None:
                return str(unless)
            return (answer.header("docker-content-digest") or "").strip() if answer.status == 200 else None

    def _about_manifest(
        self,
        method: Literal["GET", "HEAD"],
        repository: Repository,
        tag: str | Digest,
        what: str,
        unless: Digest | None = None,
    ) -> Request:
        headers = {"Accept": ACCEPT}
        if unless is not None:
            headers["If-None-Match"] = f'"{unless}"'
        return Request(method, endpoint.manifest(self._settings, repository, tag), repository.registry, what, headers)

    def _blob_answer(
        self, repository: Repository, digest: Digest, offset: int, credential: Credential, end: int | None, query: str
    ) -> Answer:
        url = endpoint.blob(self._settings, repository, digest)
        headers = dict(self._headers)
        if offset or end is not None:
            headers["Range"] = f"bytes={offset}-{'' if end is None else end - 1}"
        if query:
            url = url.join(f"?{query}")
        request = Request("GET", url, repository.registry, _blob_name(repository, digest), headers)
        deadline = time.monotonic() + self._settings.pull.document_timeout_seconds
        return self._authenticator.send(request, repository, credential, deadline)

    def _whole(self, answer: Answer, repository: Repository, digest: Digest, credential: Credential) -> Body:
        if answer.status != 200:
            with answer:
                raise self._meaning(answer, _blob_name(repository, digest), repository, credential)
        answer.body.total = answer.body.length
        return answer.body

    def _meaning(self, answer: Answer, what: str, repository: Repository, credential: Credential) -> ModelMountError:
        """What an answer that isn't what was asked for means; reads its body."""
        return answers.meaning(answer, what, credential, endpoint.home(self._settings, repository.registry))


def _verified(data: bytes, tag: str | Digest, what: str, named: str | None) -> Digest:
    """The digest of these bytes. What the registry names shows damage; it is never believed against the bytes."""
    if isinstance(tag, str):
        found = Digest.of(data)
        if _parsed(named) not in {None, found}:
            raise Unavailable(
                f"{what}: its manifest came with other bytes than its digest names (it is said to be {named}, they "
                f"hash to {found})"
            )
        return found
    hasher = tag.hasher()
    hasher.update(data)
    if hasher.hexdigest() != tag.hex:
        raise IntegrityError(
            f"{what}: the registry served other bytes than its digest names (they hash to {tag.algorithm}:"
            f"{hasher.hexdigest()}); have the registry's copy checked or push the model again"
        )
    return tag


def _parsed(named: str | None) -> Digest | None:
    """A sha256 digest that a header names, if it does."""
    try:
        digest = Digest.parse((named or "").strip())
    except InvalidRequest:
        return None
    return digest if digest.algorithm == "sha256" else None


def _name(repository: Repository, tag: str | Digest) -> str:
    return f"{repository}{'@' if isinstance(tag, Digest) else ':'}{tag}"


def _blob_name(repository: Repository, digest: Digest) -> str:
    return f"blob {digest} of {repository}"
