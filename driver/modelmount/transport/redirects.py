"""Following redirects, by our own rules: at most five, credentials only to where they were meant for, never from https
to http, never to anything that isn't http or https. Which addresses a target may have is the pool's part.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from modelmount.errors import Forbidden, Unavailable
from modelmount.transport.body import DISCARD_BYTES
from modelmount.transport.pool import Answer, Pool, Request
from modelmount.transport.url import Url

MAX_REDIRECTS: Final = 5
_STATUSES: Final = frozenset({301, 302, 303, 307, 308})
_HARMLESS: Final = frozenset({"accept", "range"})
_DISCARD_SECONDS: Final = 5.0


def send(pool: Pool, request: Request, deadline: float) -> Answer:
    """Ask, and follow where the answers of a GET or HEAD lead; the Answer's `url` says who spoke last. What else is
    asked is asked at one place only: a redirect is its answer.

    Of the headers, only what names the bytes goes along to another scheme, host or port: no Authorization, and nothing
    that an admin has a mirror sent. It doesn't come back when a later redirect does.
    Raises what the pool raises; Forbidden for a redirect that isn't allowed, Unavailable for one that makes no sense or
    never ends.
    """
    for _ in range(MAX_REDIRECTS + 1):
        answer = pool.send(request, deadline)
        if answer.status not in _STATUSES or request.method not in {"GET", "HEAD"}:
            return answer
        location = answer.header("location")
        discard(answer)
        target = _target(request, location)
        headers = request.headers
        if not target.same_origin(request.url):
            headers = {name: value for name, value in headers.items() if name.lower() in _HARMLESS}
        request = replace(request, url=target, headers=headers)
    raise Unavailable(
        f"{request.what}: {request.url.authority} redirects again and again; have the registry checked", answered=True
    )


def discard(answer: Answer) -> None:
    """Read what is left of an unwanted body if it is short, so that its connection stays; close it otherwise."""
    try:
        answer.body.read_all(DISCARD_BYTES, time.monotonic() + _DISCARD_SECONDS)
    except Unavailable:
        pass  # nobody wants it; the connection is closed


def _target(request: Request, location: str | None) -> Url:
    here = request.url.authority
    if not location:
        raise Unavailable(f"{request.what}: {here} redirects to nowhere; have the registry checked", answered=True)
    try:
        target = request.url.join(location)
    except ValueError as e:
        raise Forbidden(f"{request.what}: {here} redirects to where nobody may follow: {e}") from e
    if request.url.scheme == "https" and target.scheme != "https":
        raise Forbidden(
            f"{request.what}: {here} redirects from https to http ({target.authority}), which is not followed; have "
            "the registry's storage use https"
        )
    return target
