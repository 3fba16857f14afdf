"""Certificates to show: the files of one, or of several, of which the server's word decides.

With several, the one is shown of which the server names an issuer (RFC 8446 §4.2.4, RFC 5246 §7.4.4), and the first one
to a server that names none of theirs, as Go's and so containerd's client does.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

Client = tuple[str, str | None]
"""Files of a certificate with its chain, and of its key where that lies apart."""

_CALLBACK: Final = "_msg_callback"
"""Of an SSLContext: called with each message of a handshake. Python has no other way to see what a server asks for."""
_HANDSHAKE: Final = 22
_CERTIFICATE_REQUEST: Final = 13
_FINISHED: Final = 20
_END: Final = "-----END CERTIFICATE-----"
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"


def show(context: ssl.SSLContext, client: Client) -> None:
    """Show this certificate to whoever asks for one. A key that wants a password is none: nobody is there to ask.
    Raises OSError, ssl.SSLError, ValueError.
    """
    context.load_cert_chain(*client, password=lambda: b"")


def choose(context: ssl.SSLContext, clients: Sequence[Client], contexts: Sequence[ssl.SSLContext]) -> None:
    """Let connections of `context` go on with that of `contexts` whose certificate, of `clients` in the same order, the
    server wants. All contexts trust the same. Raises OSError, ValueError.
    """
    issuers = [_issuers(certificate) for certificate, _ in clients]

    def look(connection: ssl.SSLSocket, direction: str, _: int, content: int, kind: int, message: bytes) -> None:
        if direction != "read" or content != _HANDSHAKE:
            return
        if kind == _CERTIFICATE_REQUEST:
            wanted = (n for n, names in enumerate(issuers) if any(name in message for name in names))
            connection.context = contexts[next(wanted, 0)]
        elif kind == _FINISHED:
            connection.context = contexts[0]  # it asked for none; nothing is to be looked at any more

    setattr(context, _CALLBACK, look)


def _issuers(certificate: str) -> set[bytes]:
    """The issuers of a chain of certificates in PEM, as they stand in them."""
    text = Path(certificate).read_text(encoding="ascii", errors="replace")
    blocks = [_BEGIN + block.partition(_END)[0] + _END for block in text.split(_BEGIN)[1:]]
    return {_issuer(ssl.PEM_cert_to_DER_cert(block)) for block in blocks}


def _issuer(der: bytes) -> bytes:
    """In DER: Certificate and TBSCertificate are sequences, and the issuer comes after version, serial number and
    algorithm (RFC 5280 §4.1).
    """
    at, _ = _span(der, _span(der, 0)[0])
    if der[at] == 0xA0:  # the version may be left out
        at = _span(der, at)[1]
    for _ in range(2):
        at = _span(der, at)[1]
    return der[at : _span(der, at)[1]]


def _span(der: bytes, at: int) -> tuple[int, int]:
    """Where the contents of the element at `at` begin and end. OpenSSL has read it before, so it is whole."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start], "big")
    return start, start + length
