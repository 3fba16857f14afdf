"""What is fuzzed of HTTP: whole answers, as they come over a connection, up to the end of their bodies."""

from __future__ import annotations

import contextlib
import socket
import threading

from modelmount.errors import Unavailable
from modelmount.transport.addresses import Reach
from modelmount.transport.body import Body, Pace
from modelmount.transport.dial import Dialer, Timed
from modelmount.transport.failures import TROUBLE, translated
from modelmount.transport.origin import Origin
from modelmount.transport.trust import Trust
from modelmount.transport.url import Url

_PATIENCE_SECONDS = 60.0
"""The other side has closed, so nothing is ever waited for."""
_MOST_BYTES = 1 << 20

SEEDS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 Partial\r\nContent-Range: bytes 0-1/2\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
    b"HTTP/1.0 200\nConnection: keep-alive\nX: a\n b\n\nuntil the end",
    b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\nWWW-Authenticate: Bearer realm=y\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\nContent-Encoding: gzip\r\n\r\n",
)
WORDS = (
    b"\r\n",
    b"\r\n\r\n",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"Content-Encoding: ",
    b"HTTP/1.1 ",
    b"ffffffffffffffff\r\n",
    b"-1",
    b" ",
    b"\t",
)


class _Given(Dialer):
    """Connects to what was already said."""

    def __init__(self, sock: Timed) -> None:
        super().__init__()
        self._given = sock

    def connect(self, host: str, port: int, reach: Reach, timeout: float) -> Timed:
        return self._given


def read_answer(data: bytes) -> None:
    """The answer to a GET and to a HEAD: its head, then its body; what is no answer is trouble, in one line."""
    for method in ("GET", "HEAD"):
        ours, theirs = socket.socketpair()
        saying = threading.Thread(target=_say, args=(theirs, data))
        saying.start()
        try:
            _read(method, Timed(fileno=ours.detach()))
        finally:
            saying.join()


def _say(sock: socket.socket, data: bytes) -> None:
    with sock, contextlib.suppress(OSError):  # who reads may have had enough
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass


def _read(method: str, sock: Timed) -> None:
    origin = Origin(Url.parse("http://h.io/"), Trust(Reach.NETWORK), None, _Given(sock))
    connection = origin.connection()
    try:
        answer = connection.ask(method, "/", {}, None, _PATIENCE_SECONDS, _PATIENCE_SECONDS)
        assert 200 <= answer.status <= 999 or answer.status == 101
        body = Body(answer, connection, "a", "h.io", Pace())
        declared, received = body.length, 0
        with body:
            view = memoryview(bytearray(4096))
            while received <= _MOST_BYTES and (count := body.readinto(view)):
                received += count
        assert declared is None or declared == received
    except Unavailable as e:
        assert e.message.isprintable()
    except TROUBLE as e:
        assert translated(e, "a", "h.io").message.isprintable()
    finally:
        connection.close()
        origin.close()
        sock.close()
