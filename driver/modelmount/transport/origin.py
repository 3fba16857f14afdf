"""One place to ask: a connection for each request, and those that idle kept for the next.

Of urllib3 this takes connections, with its TLS. Its pools decide about retries, redirects and proxies for each request
anew, its requests about bodies of every kind and its responses about encodings, all of which is off here; that, and
reading heads, was most of what a request cost (measured).
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from urllib3.connection import HTTPConnection, HTTPSConnection

from modelmount.transport.dial import Dialer, Timed
from modelmount.transport.head import Head
from modelmount.transport.trust import Trust
from modelmount.transport.tunnel import tunnel
from modelmount.transport.url import Url

KEPT_CONNECTIONS: Final = 16
"""Idle connections kept for one origin."""


class Connection(HTTPConnection):
    """A connection over our own dialling, for one request at a time; connected when it is first asked.

    `answering` is the socket that the last answer came over, also when it is no longer the connection's own. Whoever
    got it calls `release` after the whole answer was read, or else `close`.
    """

    answering: Timed | None = None

    def __init__(self, origin: Origin, url: Url, *, dialer: Dialer, trust: Trust, **options: Any) -> None:
        super().__init__(url.host, url.port, **options)
        self._origin, self._dialer, self._trust = origin, dialer, trust
        self._authority = url.authority

    def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | Iterator[bytes] | None,
        connecting: float,
        waiting: float,
    ) -> Head:
        """Send a request and return its answer, whose body is still to be read. A connection may take `connecting`
        seconds, and so may each piece of a body; each wait for the answer's head, and all of them together, `waiting`.
        Headers say how long the body is. Raises what urllib3, http.client, ssl and sockets do, and what dialling does.
        """
        self.timeout = connecting
        if self.sock is None:
            self.connect()
        sock: object = self.sock
        if not isinstance(sock, Timed):
            raise TypeError("the connection isn't over a socket of ours")
        sock.settimeout(waiting if body is None else connecting)
        try:
            sock.sendall(self._question(method, target, headers))
            for piece in (body,) if isinstance(body, bytes) else body or ():
                sock.sendall(piece)
        except OSError as e:
            if e.errno not in {errno.EPIPE, errno.ECONNRESET}:
                raise  # else the other side had enough, and may have said why
        self.answering = sock
        if body is not None:
            sock.settimeout(waiting)
        sock.deadline = time.monotonic() + waiting
        head = Head(sock, method)
        try:
            head.begin()
        except BaseException:
            head.close()
            raise
        sock.deadline = None
        sock.settimeout(waiting)
        if head.will_close:
            self.close()  # the socket stays open for as long as the answer is
        return head

    def _question(self, method: str, target: str, headers: Mapping[str, str]) -> bytes:
        """The request's head. Raises ValueError where a header has the end of a line in it."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""])
        if head.count("\r") != len(lines) + 1 or head.count("\n") != len(lines) + 1:
            raise ValueError("a header has more than one line")
        return head.encode("latin-1")

    @property
    def is_quiet(self) -> bool:
        """Whether it is connected, and nothing came since the last answer: neither an end nor a word. As urllib3's
        `is_connected`, in a quarter of the calls.
        """
        if self.sock is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def release(self) -> None:
        """The answer was read to its end: the connection may serve somebody else, where the answer didn't end it."""
        self._origin._keep(self)

    def _new_conn(self) -> socket.socket:
        if self._trust.proxy:
            return tunnel(self._dialer, self._trust, self.host, self.port, _seconds(self.timeout))
        return self._dialer.connect(self.host, self.port, self._trust.reach, _seconds(self.timeout))


class _TlsConnection(Connection, HTTPSConnection):
    pass


class Origin:
    """The connections to one origin, under one trust. Thread-safe."""

    def __init__(self, url: Url, trust: Trust, context: ssl.SSLContext | None, dialer: Dialer) -> None:
        """Connects to nothing yet. `context` where it is https."""
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False
        self._kind: type[Connection] = Connection if context is None else _TlsConnection
        self._options: dict[str, Any] = {"dialer": dialer, "trust": trust}
        if context is not None:
            self._options["ssl_context"] = context
        self._url = url

    def connection(self) -> Connection:
        """One that idles and on which nothing has happened since, or else a new one."""
        while True:
            with self._lock:
                if not self._idle:
                    return self._kind(self, self._url, **self._options)
                kept = self._idle.pop()
            if kept.is_quiet:
                return kept
            kept.close()  # the other side ended it, or says something that nobody asked for

    def close(self) -> None:
        """Close what idles, now and later."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()

    def _keep(self, connection: Connection) -> None:
        with self._lock:
            if not self._closed and connection.sock is not None and len(self._idle) < KEPT_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()


def _seconds(timeout: object) -> float:
    if not isinstance(timeout, int | float):
        raise TypeError("every request has a timeout")
    return float(timeout)
