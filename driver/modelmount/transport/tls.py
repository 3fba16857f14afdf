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
_Key = tuple[str | None, bool, tuple[Client, ...]]


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
        key = (trust.ca_file, trust.system_cas, trust.clients)
        shown = [self._client_signatures(client, key) for client in trust.clients]
        try:
            signatures = tuple(each for files in shown for each in files)
            if trust.ca_file is not None:
                signatures += (_signature(trust.ca_file),)
            with self._lock:
                if key not in self._known or self._known[key][0] != signatures:
                    self._known[key] = (signatures, self._context(*key))
                return self._known[key][1]
        except (OSError, ssl.SSLError) as e:
            reason = e.strerror or "it holds no certificates in PEM form"
            raise Unavailable(
                f"the CA file {trust.ca_file} can't be used ({reason}); the admin has to put it right"
            ) from e

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

    def _context(self, ca_file: str | None, system_cas: bool, clients: tuple[Client, ...]) -> ssl.SSLContext:
        contexts = [self._without_client(ca_file, system_cas) for _ in clients]
        for context, client in zip(contexts, clients, strict=True):
            certificates.show(context, client)
        if len(contexts) == 1:
            return contexts[0]
        made = self._without_client(ca_file, system_cas)
        if contexts:
            certificates.choose(made, clients, contexts)
        return made

    def _without_client(self, ca_file: str | None, system_cas: bool) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=ca_file)
        if ca_file is not None and system_cas:
            context.load_default_certs()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.hostname_checks_common_name = False
        context.sslsocket_class = self._socket_class
        return context


def _signature(path: str) -> _Signature:
    status = Path(path).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
