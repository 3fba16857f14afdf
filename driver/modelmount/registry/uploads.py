"""Writing to a registry: blobs that it doesn't have, each in one PUT, then the manifest that names them.

Protocol: OCI distribution-spec, "Pushing blobs" and "Pushing manifests". A blob is asked for first (HEAD), then mounted
from another repository of the registry that has it, and sent only then; so whoever begins again goes on with the first
blob that is missing. A blob's upload that breaks off is begun anew: registries keep parts of one in ways of their own.
"""

from __future__ import annotations

import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from modelmount.config import Settings
from modelmount.errors import IntegrityError, ModelMountError, Unavailable
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.registry import answers, endpoint
from modelmount.registry.auth import Authenticator, Rights
from modelmount.registry.client import ACCEPT
from modelmount.registry.credentials import Credential
from modelmount.transport import redirects
from modelmount.transport.pool import Answer, Content, Pool, Request
from modelmount.transport.retry import Policy
from modelmount.transport.url import Url

TRIES: Final = 5
"""How often one blob is begun when trouble that may pass ends it."""
ANSWER_SECONDS: Final = 900.0
"""How long a registry may think about a blob that it has got: some copy it to its place first."""

How = Literal["found", "mounted", "sent"]
"""How a blob came to be there: it was there, another repository had it, or its bytes were sent."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bytes:
    """A small body, in one piece."""

    data: bytes

    @property
    def length(self) -> int:
        """Its bytes."""
        return len(self.data)

    def pieces(self) -> Iterator[bytes]:
        """The one piece."""
        yield self.data


class Uploads:
    """One repository, written with one credential. Thread-safe; several blobs may be sent at once.

    All methods raise Unauthenticated, Forbidden, NotFound or Unavailable as the registry's answer means; Unavailable
    after TRIES with growing waits.
    """

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        credential: Credential,
        *,
        beside: Sequence[str] = (),
        policy: Policy | None = None,
    ) -> None:
        """Connects to nothing yet. `beside` are paths of the registry's other repositories from which blobs may be
        mounted; `policy` is how long to wait between tries.
        """
        self._settings, self._repository, self._credential = settings, repository, credential
        self._beside = tuple(beside)
        self._pool = Pool(settings)
        self._authenticator = Authenticator(settings, self._pool)
        self._policy = policy or Policy()
        self._closing = threading.Event()
        self._home = endpoint.home(settings, repository.registry)

    def blob(self, digest: Digest, content: Content) -> How:
        """Have this blob in the repository. `content` is read only when it must be sent, and again at each try.

        Raises IntegrityError when the registry says that the bytes aren't those of the digest, and what `content`
        raises.
        """
        return self._patiently(lambda: self._blob(digest, content))

    def manifest(self, name: str, data: bytes, media_type: str) -> bool:
        """Have `name` (a tag, or the digest of `data`) mean this document, whose blobs are all there. Whether it had
        to be sent.
        """
        return self._patiently(lambda: self._manifest(name, data, media_type))

    def close(self) -> None:
        """End all connections, and waits between tries. Twice is harmless."""
        self._closing.set()
        self._pool.close()

    # -- inside

    def _patiently(self, act: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return act()
            except Unavailable as e:
                failures += 1
                if failures == TRIES or self._closing.wait(self._policy.delay(failures, e.retry_after)):
                    raise

    def _blob(self, digest: Digest, content: Content) -> How:
        what = f"blob {digest} for {self._repository}"
        if self._has(self._repository, digest, Rights(push=True)):
            return "found"
        for other in self._beside:
            if self._has(Repository(self._repository.registry, other), digest, Rights()) and self._mount(
                digest, other, what
            ):
                return "mounted"
        with self._ask("POST", endpoint.uploads(self._settings, self._repository), what) as answer:
            if answer.status != 202:
                raise self._refusal(answer, what)
            place = self._place(answer, what)
            redirects.discard(answer)
        query = urllib.parse.urlencode({"digest": str(digest)})
        path, mark, given = place.target.partition("?")
        url = Url(place.scheme, place.host, place.port, f"{path}?{given}&{query}" if mark else f"{path}?{query}")
        headers = {"Content-Type": "application/octet-stream"}
        with self._ask("PUT", url, what, headers, content) as answer:
            if answer.status not in {201, 204}:
                raise self._unsent(answer, what)
            redirects.discard(answer)
        return "sent"

    def _has(self, repository: Repository, digest: Digest, rights: Rights) -> bool:
        """Whether the blob is there to be read. Whoever mustn't read another repository has no use for it."""
        what = f"blob {digest} of {repository}"
        url = endpoint.blob(self._settings, repository, digest)
        request = Request("HEAD", url, repository.registry, what)
        with self._authenticator.send(request, repository, self._credential, self._soon(), rights) as answer:
            if answer.status == 200:
                return True
            # Storage that it redirects to may do no HEAD; sending once more is all that comes of it.
            if answer.status == 404 or not rights.push or not answer.url.same_origin(self._home):
                return False
            raise self._refusal(answer, what)

    def _mount(self, digest: Digest, other: str, what: str) -> bool:
        """A registry that doesn't mount begins an upload instead: that one is left to it, which forgets it in time."""
        start = endpoint.uploads(self._settings, self._repository)
        query = urllib.parse.urlencode({"mount": str(digest), "from": other})
        with self._ask("POST", start.join(f"?{query}"), what, beside=other) as answer:
            redirects.discard(answer)
            return answer.status == 201

    def _manifest(self, name: str, data: bytes, media_type: str) -> bool:
        digest = Digest.of(data)
        what = f"manifest {name} of {self._repository}"
        url = endpoint.manifest(self._settings, self._repository, name)
        with self._ask("HEAD", url, what, {"Accept": ACCEPT}) as answer:
            if answer.status == 200 and answer.header("docker-content-digest") == str(digest):
                return False
        with self._ask("PUT", url, what, {"Content-Type": media_type}, Bytes(data)) as answer:
            if answer.status not in {200, 201}:
                raise self._refusal(answer, what)
            named = answer.header("docker-content-digest")
            redirects.discard(answer)
        if named not in {None, str(digest)}:
            raise IntegrityError(
                f"{what}: {self._home.authority} says that it is {named}, where {digest} was sent; have the registry, "
                "and what lies between, checked"
            )
        return True

    def _ask(
        self,
        method: Literal["HEAD", "POST", "PUT"],
        url: Url,
        what: str,
        headers: dict[str, str] | None = None,
        content: Content | None = None,
        *,
        beside: str = "",
    ) -> Answer:
        """Where an upload goes may be another host than the registry's; that one gets no credential."""
        patience = ANSWER_SECONDS if content is not None else None
        request = Request(
            method,
            url,
            self._repository.registry,
            what,
            headers or {},
            content or (b"" if method == "POST" else None),
            patience,
        )
        if not url.same_origin(self._home):
            return self._pool.send(request, self._soon())
        rights = Rights(push=True, beside=beside)
        return self._authenticator.send(request, self._repository, self._credential, self._soon(), rights)

    def _place(self, answer: Answer, what: str) -> Url:
        try:
            if not (location := answer.header("location")):
                raise ValueError("its answer has no Location")
            return answer.url.join(location)
        except ValueError as e:
            raise Unavailable(f"{what}: {self._home.authority} names no place to send it to: {e}") from e

    def _unsent(self, answer: Answer, what: str) -> ModelMountError:
        """A blob's bytes were refused. An upload that is gone (404) is begun anew."""
        if answer.status == 404:
            return Unavailable(f"{what}: {self._home.authority} forgot the upload while it went on")
        error = self._refusal(answer, what)
        if answer.status == 400:
            return IntegrityError(f"{error.message}; the file may have changed meanwhile, or been damaged on the way")
        return error

    def _refusal(self, answer: Answer, what: str) -> ModelMountError:
        return answers.refusal(answer, what, self._credential, self._home)

    def _soon(self) -> float:
        return time.monotonic() + self._settings.pull.document_timeout_seconds
