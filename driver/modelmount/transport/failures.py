"""What went wrong below HTTP, in an admin's words."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from typing import Final

import urllib3.exceptions as libs

from modelmount.errors import Unavailable
from modelmount.transport.dial import STOPPING, Interrupted

TROUBLE: Final = (libs.HTTPError, http.client.HTTPException, OSError)
"""Everything that urllib3, http.client, ssl and sockets raise when a connection fails or an answer is none."""

_GONE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ConnectionAbortedError)


def translated(error: Exception, what: str, server: str) -> Unavailable:
    """The Unavailable for one of TROUBLE; `what` was asked for at `server`. Nothing of the request gets into it."""
    return Unavailable(f"{what}: {server} {_happened(error)}")


def was_gone(error: Exception) -> bool:
    """Whether the other side had closed the connection before it answered: normal for a kept connection that idled."""
    return any(isinstance(each, _GONE) for each in _chain(error))


def _happened(error: Exception) -> str:
    chain = list(_chain(error))
    if any(isinstance(each, Interrupted) for each in chain):
        return STOPPING
    for each in chain:
        if isinstance(each, ssl.SSLCertVerificationError):
            reason = (each.verify_message or "it can't be verified").rstrip(".")
            return f"has a certificate that isn't trusted ({reason}); the admin can name its CA with ca_file"
    for each in chain:
        if isinstance(each, ssl.SSLError):
            reason = (each.reason or "handshake failed").lower().replace("_", " ")
            remedy = "if it is plain http, plain_http in the configuration (--plain-http at the command line) says so"
            return f"doesn't speak TLS as it is expected ({reason}); {remedy}"
    if any(isinstance(each, TimeoutError | libs.TimeoutError) for each in chain):
        return "didn't answer in time"
    if was_gone(error):
        return "closed the connection"
    for each in chain:
        if isinstance(each, OSError) and each.strerror:
            return f"can't be talked to ({each.strerror})"
    return "answered with something that isn't sane HTTP"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made from: urllib3 keeps originals among its arguments, not always as the cause."""
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        pending += [argument for argument in each.args if isinstance(argument, BaseException)]
        if each.__cause__ is not None:
            pending.append(each.__cause__)
