"""What an answer that isn't a success means. The only place where a registry's status becomes an error."""

from __future__ import annotations

import base64
import email.utils
import re
import time
import urllib.parse

from modelmount.errors import Forbidden, ModelMountError, NotFound, Unauthenticated, Unavailable
from modelmount.oci import errcode
from modelmount.registry.credentials import Credential
from modelmount.transport.pool import Answer
from modelmount.transport.retry import read_retry_after
from modelmount.transport.url import Url

MAX_REASONS = 3
"""Of what an answer says about itself, so much goes into a message: events have little room."""
SHORTEST_SECRET = 6
"""Shorter ones are in ordinary words too."""
_AUTHORIZATION = re.compile(r"\b(?:basic|bearer)\s+(?=\S*[0-9])[\w+/=.~-]{16,}", re.ASCII | re.IGNORECASE)
"""A header as it was sent, with an access token that was made meanwhile."""
_READ_SECONDS = 5.0
_TROUBLE = frozenset({408, 425, 429})
"""Not a word on what was asked, though they aren't 5xx: it came too slowly, too early, too often."""


def meaning(answer: Answer, what: str, credential: Credential, home: Url) -> ModelMountError:
    """The error to raise for `answer`, which is read as far as it explains itself, and closed.

    `home` is the URL that was asked: an answer of another origin is about the registry's storage, and judges nobody's
    credential. Waits that the other side asks for come along, bounded.
    """
    said, retry_after = _diagnostics(answer, credential), _retry_after(answer)
    status = answer.status
    if not answer.url.same_origin(home):
        return Unavailable(
            f"{what}: {home.authority} redirects to {answer.url.authority}, which answered {status}; have the "
            "registry's storage checked",
            retry_after=retry_after,
            answered=_is_word(status),
        )
    if status in {401, 403, 404}:
        return no_access(what, credential, status)
    if status == 412:
        why = said or "; ask the admin of the registry why"
        return Forbidden(f"{what}: a policy of {home.authority} forbids it{why}")
    wait = f" and asks to wait {retry_after:.0f} s" if retry_after else ""
    if status == 429:
        return Unavailable(f"{what}: {home.authority} gets too many requests{wait}{said}", retry_after=retry_after)
    return Unavailable(
        f"{what}: {home.authority} answered {status}{wait}{said}", retry_after=retry_after, answered=_is_word(status)
    )


def _is_word(status: int) -> bool:
    """Whether it is a word on what was asked, however odd, and not on the other side's own trouble (RFC 9110, 15)."""
    return status < 500 and status not in _TROUBLE


def no_access(what: str, credential: Credential, status: int) -> ModelMountError:
    """The error for a 401, 403 or 404. Its text is the same for all: whoever may not read something doesn't learn from
    us whether it exists.
    """
    text = (
        f"{what}: not found or no access; check the name, and that the Secret of nodePublishSecretRef has "
        "credentials for this registry that may pull it"
    )
    if status == 404:
        return NotFound(text)
    return Unauthenticated(text) if credential.is_anonymous else Forbidden(text)


def refusal(answer: Answer, what: str, credential: Credential, home: Url) -> ModelMountError:
    """`meaning`, for who wanted to write: what isn't allowed to push is no secret, and has other remedies."""
    status, there = answer.status, home.authority
    if not answer.url.same_origin(home) or status in {412, 429} or status >= 500:
        return meaning(answer, what, credential, home)
    said = _diagnostics(answer, credential)
    if status == 400:
        return Forbidden(f"{what}: {there} refuses it{said}")
    if status == 401 and credential.is_anonymous:
        return Unauthenticated(f"{what}: {there} takes it from nobody without a credential{said}")
    if status in {401, 403}:
        who = "nobody without a credential" if credential.is_anonymous else "this account"
        return Forbidden(f"{what}: {there} doesn't take it from {who}{said}; ask its admin for the right to push")
    if status == 404:
        return NotFound(f"{what}: {there} has no place for it{said}; some registries want the project to be made first")
    if status == 405:
        return Forbidden(f"{what}: {there} takes nothing{said}; it may be read-only, or a proxy of another registry")
    if status == 413:
        return Forbidden(
            f"{what}: it is larger than {there} takes{said}; have the limit on request bodies raised there, or in the "
            "proxy before it"
        )
    return Unavailable(f"{what}: {there} answered {status}{said}", retry_after=_retry_after(answer))


def _diagnostics(answer: Answer, credential: Credential) -> str:
    """Its own words, unless they repeat what it was shown: error pages may, and words go into events and logs."""
    try:
        body = answer.body.read_all(errcode.MAX_BODY_BYTES, time.monotonic() + _READ_SECONDS)
    except Unavailable:
        return ""
    said = "; ".join(str(each) for each in errcode.parse(body or b"")[:MAX_REASONS])
    words = "\n".join((said, (body or b"").decode(errors="replace"), *errcode.texts(body or b"")))
    words += urllib.parse.unquote(words)  # who repeats a form repeats it encoded
    if said and _repeats(words, credential, answer.shown):
        return " (its words are left out, for they repeat a credential)"
    return f" ({said})" if said else ""


def _repeats(words: str, credential: Credential, headers: tuple[str, ...]) -> bool:
    login = base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()
    _, *secrets = credential.secrets
    tokens = [value.rpartition(" ")[2] for value in headers]  # without `Bearer`
    shown = [secret for secret in (*secrets, login, *tokens) if len(secret) >= SHORTEST_SECRET]
    return any(secret in words for secret in shown) or _AUTHORIZATION.search(words) is not None


def _retry_after(answer: Answer) -> float | None:
    """A date is compared with the other side's own clock where it tells it."""
    now = time.time()
    date = answer.header("date")
    if date is not None:
        try:
            now = email.utils.parsedate_to_datetime(date).timestamp()
        except (ValueError, TypeError, OverflowError, OSError):
            pass  # then our own clock has to do
    return read_retry_after(answer.header("retry-after"), now)
