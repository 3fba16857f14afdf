"""Bearer tokens: fetched from token servers, kept until shortly before they expire, fetched once for all who wait.

Protocol: distribution "Token Authentication Specification" (GET) and "OAuth2" (POST, for identity tokens); RFC 8693
(POST too, for tokens of service accounts).
"""

from __future__ import annotations

import base64
import math
import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from modelmount.errors import Unavailable
from modelmount.oci import jsontext
from modelmount.registry import answers
from modelmount.registry.credentials import Credential
from modelmount.registry.recent import Recent
from modelmount.transport.pool import Answer, Pool, Request
from modelmount.transport.url import Url

MAX_ANSWER_BYTES: Final = 1 << 20
DEFAULT_LIFETIME_SECONDS: Final = 60.0
"""Where the answer names none; the specification's own default."""
LONGEST_LIFETIME_SECONDS: Final = 3600.0
"""A revoked right is noticed at the latest when the token is fetched anew."""
KEPT_TOKENS: Final = 1024

_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Key:
    """What a token is good for, and whose it is."""

    registry: str
    server: Url
    service: str
    scope: str
    credential: Credential


class Tokens:
    """The tokens of this process, in memory only. Thread-safe."""

    def __init__(self, pool: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` measures lifetimes: a monotonic one, so that nobody's wall clock matters."""
        self._pool, self._clock = pool, clock
        self._slots: Recent[Key, _Slot] = Recent(KEPT_TOKENS)

    def peek(self, key: Key) -> str | None:
        """A token that is still good, without asking anybody."""
        slot = self._slots.get(key)
        return slot.token if slot is not None and self._clock() < slot.expires_at else None

    def get(self, key: Key, refused: str | None, what: str, deadline: float, since: float = math.inf) -> str:
        """A token that is still good and isn't `refused`, fetched if need be; one fetched `since` that time of the
        clock is good all the same, for another would be refused like it.

        Of several callers with one key, one fetches and the others wait for it, up to their own deadline. Raises what
        the token server's answer means: Unauthenticated or Forbidden for a refusal, Unavailable for everything else.
        Redirects are not followed.
        """
        slot = self._slots.setdefault(key, _Slot)
        if not slot.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Unavailable(f"{what}: the token server {key.server.authority} didn't answer in time")
        try:
            stale = slot.token == refused and slot.asked_at < since
            if slot.token is None or stale or self._clock() >= slot.expires_at:
                asked_at = self._clock()
                token, lifetime = self._fetch(key, what, deadline)
                slot.token, slot.expires_at = token, asked_at + lifetime - min(lifetime / 10, 30.0)
                slot.asked_at = asked_at
            return slot.token
        finally:
            slot.lock.release()

    def _fetch(self, key: Key, what: str, deadline: float) -> tuple[str, float]:
        with self._pool.send(_question(key, what), deadline) as answer:
            if answer.status != 200:
                raise _refusal(answer, key, what)
            data = answer.body.read_all(MAX_ANSWER_BYTES, deadline)
        try:
            document = jsontext.loads(data or b"")
            token = document.get("token") or document.get("access_token")
            lifetime = document.get("expires_in")
        except (ValueError, AttributeError):
            token = lifetime = None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise Unavailable(
                f"{what}: the token server {key.server.authority} answered without a token that can be used",
                answered=True,
            )
        return token, _lifetime(lifetime)


@dataclass(slots=True)
class _Slot:
    """One token. The lock is held while it is fetched; reading needs none, since a token is set before its lifetime."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    token: str | None = field(default=None, repr=False)
    expires_at: float = 0.0
    asked_at: float = 0.0


def basic(username: str, password: str) -> str:
    """The value of an Authorization header (RFC 7617, in UTF-8)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _question(key: Key, what: str) -> Request:
    credential = key.credential
    fields = {"service": key.service, "scope": key.scope}
    if credential.identity_token or credential.account_token:
        fields |= _grant(credential)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return Request("POST", key.server, key.registry, what, headers, urllib.parse.urlencode(fields).encode())
    # Several scopes are several parameters in a GET, and words of one in a POST.
    query = urllib.parse.urlencode(
        [
            (name, value)
            for name, text in fields.items()
            for value in (text.split() if name == "scope" else [text] if text else [])
        ]
    )
    target = key.server.target + ("&" if "?" in key.server.target else "?") + query
    headers = {} if credential.is_anonymous else {"Authorization": basic(credential.username, credential.password)}
    server = Url(key.server.scheme, key.server.host, key.server.port, target)
    return Request("GET", server, key.registry, what, headers)


def _grant(credential: Credential) -> dict[str, str]:
    """What is exchanged, and how."""
    if credential.identity_token:
        return {"grant_type": "refresh_token", "refresh_token": credential.identity_token, "client_id": "modelmount"}
    return {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": credential.account_token,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "client_id": "modelmount",
    }


def _refusal(answer: Answer, key: Key, what: str) -> Exception:
    # RFC 6749 §5.2: an invalid grant is a 400.
    exchanged = key.credential.identity_token or key.credential.account_token
    if answer.status in {401, 403} or (answer.status == 400 and exchanged):
        return answers.no_access(what, key.credential, 401)
    if answer.status == 404:
        return Unavailable(
            f"{what}: the token server {key.server} doesn't exist (404); have the registry checked", answered=True
        )
    if 300 <= answer.status < 400:
        return Unavailable(
            f"{what}: the token server {key.server.authority} redirects, which is not followed", answered=True
        )
    return answers.meaning(answer, what, key.credential, answer.url)


def _lifetime(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DEFAULT_LIFETIME_SECONDS
    return float(min(value, LONGEST_LIFETIME_SECONDS)) if value > 0 else 0.0
