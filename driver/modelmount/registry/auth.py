"""Asking a registry with a credential: what it wants is learnt from its challenges, answered at most twice a request,
and remembered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from modelmount.config import Settings
from modelmount.oci import challenge as challenges
from modelmount.oci.challenge import Challenge
from modelmount.oci.reference import Repository
from modelmount.registry import realms
from modelmount.registry.credentials import Credential
from modelmount.registry.recent import Recent
from modelmount.registry.tokens import Key, Tokens, basic
from modelmount.transport import redirects
from modelmount.transport.pool import Answer, Pool, Request

MAX_ROUNDS: Final = 2
"""Answers to challenges in one request; a registry that is still not content has said no."""
KEPT_CHALLENGES: Final = 1024


@dataclass(frozen=True, slots=True)
class Rights:
    """What is to be done in a repository: always reading, and writing where `push`. `beside` is another repository of
    the registry, to be read with the same token.
    """

    push: bool = False
    beside: str = ""


PULL: Final = Rights()

_PREFERENCE: Final = ("bearer", "basic")
_SCOPE = re.compile(r"repository:([a-z0-9](?:[a-z0-9._/-]*[a-z0-9])?):(?:[a-z]+,)*(?:pull|\*)(?:,[a-z]+)*", re.ASCII)


class Authenticator:
    """Sends requests to registries and shows credentials where they are asked for. Thread-safe."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        """Knows nothing about any registry yet."""
        self._settings, self._pool = settings, pool
        self._tokens = Tokens(pool)
        self._wanted: Recent[Repository, Challenge] = Recent(KEPT_CHALLENGES)

    def send(
        self,
        request: Request,
        repository: Repository,
        credential: Credential,
        deadline: float,
        rights: Rights = PULL,
        *,
        since: float = math.inf,
    ) -> Answer:
        """Ask as `redirects.send` does, authenticated, with a token that is good for `rights`; an answer that is still
        a 401 is returned like any other, its body closed. A token that was fetched `since` that time.monotonic() and is
        refused isn't fetched anew.

        Raises what the pool raises; Forbidden for a token server that isn't trusted; and what that one's refusal means.
        """
        asker = _Asker(repository, credential, request.what, deadline, rights, since)
        authorization = self._known(asker)
        tried: set[str] = set()
        while True:
            asked = request
            if authorization is not None:
                asked = replace(request, headers={**request.headers, "Authorization": authorization})
            answer = redirects.send(self._pool, asked, deadline)
            if answer.status != 401 or not answer.url.same_origin(request.url):
                return answer
            redirects.discard(answer)
            offered = challenges.parse(answer.header_values("www-authenticate"))
            following = self._following(offered, tried, authorization, asker)
            if following is None:
                return answer
            authorization = following

    # -- inside

    def _known(self, asker: _Asker) -> str | None:
        """What this repository wanted last time, as far as it can be had without asking anybody."""
        if asker.credential.registry_token:
            return f"Bearer {asker.credential.registry_token}"
        wanted = self._wanted.get(asker.repository)
        if wanted is None:
            return None
        if wanted.scheme == "basic":
            return _basic(asker.credential)
        token = self._tokens.peek(self._key(wanted, asker))
        return f"Bearer {token}" if token is not None else None

    def _following(
        self, offered: Iterable[Challenge], tried: set[str], refused: str | None, asker: _Asker
    ) -> str | None:
        """The Authorization for the best challenge that can be answered and wasn't yet; None when there is none left or
        enough was tried.
        """
        if len(tried) >= MAX_ROUNDS:
            return None
        usable = [each for each in offered if each.scheme in _PREFERENCE and each.scheme not in tried]
        for challenge in sorted(usable, key=lambda each: _PREFERENCE.index(each.scheme)):
            authorization = self._authorization(challenge, refused, asker)
            if authorization is not None and authorization != refused:
                tried.add(challenge.scheme)
                self._wanted.put(asker.repository, challenge)
                return authorization
        return None

    def _authorization(self, challenge: Challenge, refused: str | None, asker: _Asker) -> str | None:
        if challenge.scheme == "basic":
            return _basic(asker.credential)
        if asker.credential.registry_token or not challenge.parameters.get("realm"):
            return None
        refused_token = (refused or "").removeprefix("Bearer ")
        key = self._key(challenge, asker)
        return f"Bearer {self._tokens.get(key, refused_token, asker.what, asker.deadline, asker.since)}"

    def _key(self, challenge: Challenge, asker: _Asker) -> Key:
        registry = asker.repository.registry
        server = realms.judge(self._settings, registry, challenge.parameters.get("realm", ""), asker.what)
        scope = _scope(challenge, asker.repository, asker.rights)
        return Key(registry, server, challenge.parameters.get("service", ""), scope, asker.credential)


@dataclass(frozen=True, slots=True)
class _Asker:
    """Who asks for what, until when."""

    repository: Repository
    credential: Credential
    what: str
    deadline: float
    rights: Rights
    since: float


def _basic(credential: Credential) -> str | None:
    return basic(credential.username, credential.password) if credential.has_password else None


def _scope(challenge: Challenge, repository: Repository, rights: Rights) -> str:
    """The rights, and nothing else, whatever the registry proposes. Its own name for the repository counts, since some
    are reached under another path than they have inside.
    """
    proposed = _SCOPE.fullmatch(challenge.parameters.get("scope", ""))
    name = proposed[1] if proposed else repository.repository
    scope = f"repository:{name}:{'pull,push' if rights.push else 'pull'}"
    return f"{scope} repository:{rights.beside}:pull" if rights.beside else scope
