"""TLS contexts, one for each set of CAs: TLS 1.2 and later, certificate and name always verified."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

from modelmount.errors import Unavailable
from modelmount.transport import certificates
from modelmount.transport.certificates import Client
from modelmount.transport.dial import Sockets, TimedTls
from modelmount.transport.trust import Trust

_Signature = tuple[int, int, int]
_Key = tuple[tuple[str, ...], bool, tuple[Client, ...]]


class Contexts:
    """Makes contexts and keeps them; a CA file that was replaced is read again. Thread-safe."""

    def __init__(self, sockets: Sockets) -> None:
        """Nothing is read yet. Connections that are made with a context are kept in `sockets`."""
        self._socket_class = TimedTls.of(sockets)
        self._lock = threading.Lock()
        self._known: dict[_Key, tuple[tuple[_Signature, ...], ssl.SSLContext]] = {}

    def get(self, trust: Trust) -> ssl.SSLContext:
        """The context for `trust`; the same object as long as its files are the same. Raises Unavailable for files that
        can't be used.
        """
        key = (trust.ca_files, trust.system_cas, trust.clients)
        shown = [self._client_signatures(client, key) for client in trust.clients]
        try:
            signatures = tuple(each for files in shown for each in files)
            signatures += tuple(_signature(file) for file in trust.ca_files)
            with self._lock:
                if key not in self._known or self._known[key][0] != signatures:
                    self._known[key] = (signatures, self._context(*key))
                return self._known[key][1]
        except (OSError, ssl.SSLError) as e:
            which, reason = _unusable(trust.ca_files) or (" or ".join(trust.ca_files), e.strerror)
            raise Unavailable(f"the CA file {which} can't be used ({reason}); the admin has to put it right") from e

    def _client_signatures(self, client: Client, key: _Key) -> tuple[_Signature, ...]:
        """Of the files of a certificate that is shown, once it turned out that they can be used."""
        try:
            found = tuple(_signature(file) for file in client if file is not None)
            known = self._known.get(key)
            if known is None or not set(found) <= set(known[0]):
                certificates.show(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), client)
        except (OSError, ssl.SSLError, ValueError) as e:
            reason = (e.strerror if isinstance(e, OSError) and not isinstance(e, ssl.SSLError) else None) or (
                "they are no certificate and its key in PEM form, not encrypted"
            )
            files = " and ".join(file for file in client if file is not None)
            raise Unavailable(
                f"the client certificate {files} can't be used ({reason}); the admin has to put it right"
            ) from None
        return found

    def _context(self, ca_files: tuple[str, ...], system_cas: bool, clients: tuple[Client, ...]) -> ssl.SSLContext:
        contexts = [self._without_client(ca_files, system_cas) for _ in clients]
        for context, client in zip(contexts, clients, strict=True):
            certificates.show(context, client)
        if len(contexts) == 1:
            return contexts[0]
        made = self._without_client(ca_files, system_cas)
        if contexts:
            certificates.choose(made, clients, contexts)
        return made

    def _without_client(self, ca_files: tuple[str, ...], system_cas: bool) -> ssl.SSLContext:
        context = trusting(ca_files)
        if ca_files and system_cas:
            context.load_default_certs()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.hostname_checks_common_name = False
        context.sslsocket_class = self._socket_class
        return context


def trusting(ca_files: tuple[str, ...]) -> ssl.SSLContext:
    """A context that trusts the certificates of all these files; without any, the system's. Raises OSError and SSLError
    for one that can't be used.
    """
    context = ssl.create_default_context(cafile=ca_files[0] if ca_files else None)
    for file in ca_files[1:]:
        context.load_verify_locations(file)
    return context


def _unusable(ca_files: tuple[str, ...]) -> tuple[str, str] | None:
    """The first of them that can't be used, and why."""
    for file in ca_files:
        try:
            trusting((file,))
        except (OSError, ssl.SSLError) as e:
            return file, e.strerror or "it holds no certificates in PEM form"
    return None


def _signature(path: str) -> _Signature:
    status = Path(path).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
