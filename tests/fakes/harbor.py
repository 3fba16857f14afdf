"""The Harbor contract: a real registry behind a token server and a policy proxy that answer as Harbor's core does.

Harbor itself needs a database, Redis and six services, so what it adds to the registry is played here, as its source
says (src/server/middleware, src/core/service/token). Known differences from the real one:

- The realm is `/service/token` on Harbor's own address, as there; tokens are signed by our token server, and name the
  registry's service, not `harbor-registry`.
- Wrong credentials get a token without rights, and after that a `Basic` challenge, as there.
- A policy's 412 comes on manifests only, GET and HEAD, after the account was found to be allowed; there the scanner and
  the signature decide, here `blocked`.
- A proxy-cache project ignores `Range` until it has the blob; there for as long as its own download takes, here for the
  first two GETs, of which the first breaks off in the middle.
- Robots are users of the token server; there they belong to projects, expire, and their names have a prefix that an
  admin can change.
- Nothing is kept of quotas, webhooks, retention, replication, or of the user interface.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from typing import Any

from tests.fakes.gateway import Gateway
from tests.fakes.registry import Registry, Tls
from tests.fakes.tokens import TokenServer
from tests.fakes.wire import Answer, Asked, document


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of Harbor's log: who did what."""

    account: str
    method: str
    path: str


class Harbor(Gateway):
    """Listens in front of `upstream`, whose tokens are those of `tokens` (`harbor_style`).

    `blocked` has the words of a policy for each repository that it keeps, `denied` those that are refused with DENIED,
    `proxied` those of a proxy-cache project. All may be changed while it runs.
    """

    def __init__(self, upstream: Registry, tokens: TokenServer) -> None:
        super().__init__(upstream)
        self._tokens = tokens
        self.blocked: dict[str, str] = {}
        self.denied: dict[str, str] = {}
        self.proxied: set[str] = set()
        self.log: list[Entry] = []
        self._proxied_requests: dict[str, int] = {}
        self._expired: set[str] = set()
        self._expire_at: int | None = None
        self._blob_requests = 0

    @property
    def tls(self) -> Tls | None:
        """None: it talks http."""
        return None

    def expire_tokens_before_blob_request(self, number: int) -> None:
        """Let every token that was shown until then be over when a blob is asked for the `number`th time from now."""
        self._expire_at = self._blob_requests + number

    @property
    def accounts(self) -> set[str]:
        """Who read manifests and blobs."""
        return {entry.account for entry in self.log}

    def _next(self, asked: Asked) -> Answer:
        with self._lock:
            self._asked.append(asked)
        if asked.path == "/service/token":
            status, granted = self._tokens.answer(asked.query, asked.headers.get("authorization"))
            return document(granted, status)
        if self._is_over(asked):
            return self._challenge(self.forward(asked, without={"authorization"}))
        answer = self._by_proxy_cache(asked) or self.forward(asked)
        repository = _repository(asked.path)
        if answer.status == 401:
            return self._basic(repository) if "authorization" in asked.headers else self._challenge(answer)
        if answer.status == 404 and "/manifests/" in asked.path:
            name = asked.path.rpartition("/")[2]
            return _error(404, "NOT_FOUND", f"artifact {repository}:{name} not found", asked)
        if answer.status < 400 and repository in self.denied:
            return _error(403, "DENIED", self.denied[repository], asked)
        if answer.status < 400 and "/manifests/" in asked.path and repository in self.blocked:
            return _error(412, "PROJECTPOLICYVIOLATION", self.blocked[repository], asked)
        if answer.status < 400:
            self.log.append(Entry(_subject(asked), asked.method, asked.path))
        return answer

    def _challenge(self, answer: Answer) -> Answer:
        """The registry's, with Harbor's own realm in it."""
        theirs, ours = self._tokens.auth.realm, f"{self.url}/service/token"
        headers = [
            (name, value.replace(theirs, ours) if name.lower() == "www-authenticate" else value)
            for name, value in answer.headers
        ]
        return replace(answer, headers=headers)

    def _basic(self, repository: str) -> Answer:
        words = f"unauthorized to access repository: {repository}, action: pull: unauthorized to access repository"
        body = {"errors": [{"code": "UNAUTHORIZED", "message": words}]}
        return document(body, 401, ("WWW-Authenticate", 'Basic realm="harbor"'))

    def _is_over(self, asked: Asked) -> bool:
        """Whether the token that is shown is over by now."""
        authorization = asked.headers.get("authorization", "")
        with self._lock:
            if "/blobs/" in asked.path and asked.method == "GET":
                self._blob_requests += 1
                if self._blob_requests == self._expire_at:
                    self._expired |= {each.headers.get("authorization", "") for each in self._asked} - {""}
            return authorization in self._expired

    def _by_proxy_cache(self, asked: Asked) -> Answer | None:
        """What a proxy-cache project answers while it fetches a blob itself: all of it, whatever range was asked for;
        the first time only its beginning. None once it has it, and for everything else.
        """
        if _repository(asked.path).partition("/")[0] not in self.proxied or "/blobs/" not in asked.path:
            return None
        with self._lock:
            times = self._proxied_requests[asked.path] = self._proxied_requests.get(asked.path, 0) + 1
        if times > 2:
            return None
        answer = self.forward(asked, without={"range"})
        return replace(answer, cut_after=len(answer.body) // 2) if times == 1 and answer.status == 200 else answer


def _repository(path: str) -> str:
    for part in ("/manifests/", "/blobs/"):
        path = path.partition(part)[0]
    return path.removeprefix("/v2/")


def _error(status: int, code: str, words: str, asked: Asked) -> Answer:
    answer = document({"errors": [{"code": code, "message": words}]}, status)
    return answer if asked.method != "HEAD" else replace(answer, declared=len(answer.body), body=b"")


def _subject(asked: Asked) -> str:
    """Whose token is shown."""
    token = asked.headers.get("authorization", "").removeprefix("Bearer ")
    if token.count(".") != 2:
        return ""
    claims = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    return str(decoded.get("sub", ""))
