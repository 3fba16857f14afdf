"""TLS contexts, one for each set of CAs: TLS 1.2 and later, certificate and name always verified."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

from modelmount.errors import Unavailable
from modelmount.transport.dial import Sockets, TimedTls
from modelmount.transport.trust import Trust

_Signature = tuple[int, int, int]


class Contexts:
    """Makes contexts and keeps them; a CA file that was replaced is read again. Thread-safe."""

    def __init__(self, sockets: Sockets) -> None:
        """Nothing is read yet. Connections that are made with a context are kept in `sockets`."""
        self._socket_class = TimedTls.of(sockets)
        self._lock = threading.Lock()
        self._known: dict[tuple[str | None, bool], tuple[_Signature | None, ssl.SSLContext]] = {}

    def get(self, trust: Trust) -> ssl.SSLContext:
        """The context for `trust`; the same object as long as the CA file is the same. Raises Unavailable for a CA file
        that can't be used.
        """
        key = (trust.ca_file, trust.system_cas)
        try:
            signature = None if trust.ca_file is None else _signature(trust.ca_file)
            with self._lock:
                if key not in self._known or self._known[key][0] != signature:
                    self._known[key] = (signature, self._context(*key))
                return self._known[key][1]
        except (OSError, ssl.SSLError) as e:
            reason = e.strerror or "it holds no certificates in PEM form"
            raise Unavailable(
                f"the CA file {trust.ca_file} can't be used ({reason}); the admin has to put it right"
            ) from e

    def _context(self, ca_file: str | None, system_cas: bool) -> ssl.SSLContext:
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
