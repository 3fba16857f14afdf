"""A little HTTP server that does on the wire what its script says: real sockets, and every fault that a healthy server
never shows. What it was asked is recorded.

It writes answers byte by byte as they are scripted, with no library between that would put them right.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

from tests.fakes.registry import Tls

JOIN_SECONDS = 10.0
_LOOK_SECONDS = 0.02
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. Names of headers are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, with its faults.

    `framing` says how the body ends: by Content-Length (`declared` replaces the true one), chunked, or with the
    connection. After `cut_after` bytes of body the connection ends, in order or with a reset; after `stall_after`
    nothing more comes until the client goes away or the server is closed. `drip` sends the body in pieces of so many
    bytes with so many seconds between. `raw` replaces status line and headers; the body follows it. `hang_up` closes
    without an answer.
    """

    status: int = 200
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()
    framing: Literal["length", "chunked", "close"] = "length"
    declared: int | None = None
    cut_after: int | None = None
    reset: bool = False
    stall_after: int | None = None
    drip: tuple[int, float] | None = None
    raw: bytes | None = None
    hang_up: bool = False


Scripted = Answer | Callable[[Asked], Answer]


class WireServer:
    """Listens on a free loopback port between `__enter__` and `__exit__`, a thread for each connection.

    `on` scripts a path: its answers are given in turn, and the last one from then on. What has no script is a 404.
    `tls` switches https on; `context` does too, for certificates and protocols that are meant to be refused.
    """

    def __init__(self, *, tls: Tls | None = None, context: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self._asked: list[Asked] = []
        self._scripts: dict[str, list[Scripted]] = {}
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._context = context or (server_context(tls) if tls is not None else None)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for peer in self._sockets:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    @property
    def host(self) -> str:
        """`host:port` as it stands in references: a name where TLS wants one, the address otherwise."""
        return f"{'localhost' if self._context else '127.0.0.1'}:{self.port}"

    @property
    def url(self) -> str:
        """Scheme and host, without a slash at the end."""
        return f"{'https' if self._context else 'http'}://{self.host}"

    @property
    def open_connections(self) -> int:
        """Connections that clients haven't closed yet."""
        with self._lock:
            return len(self._sockets)

    def on(self, path: str, *answers: Scripted) -> None:
        """Script what `path` (without query) answers."""
        with self._lock:
            self._scripts[path] = list(answers)

    def asked(self, path: str | None = None) -> list[Asked]:
        """The requests so far, of one path or of all, in the order of their arrival."""
        with self._lock:
            return [each for each in self._asked if path is None or each.path == path]

    # -- serving

    def _spawn(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, name="wire", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return  # the listener was closed
            with self._lock:
                self.connections += 1
                self._sockets.add(peer)
            self._spawn(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        try:
            if self._context is not None:
                peer = self._secured(self._context, peer)
            with peer.makefile("rb") as stream:
                while (asked := _read(stream)) is not None:
                    if not self._reply(peer, asked, self._next(asked)):
                        break
        except (OSError, ValueError):
            pass  # the client went away, or didn't like our certificate
        finally:
            with self._lock:
                self._sockets.discard(peer)
            peer.close()

    def _secured(self, context: ssl.SSLContext, bare: socket.socket) -> ssl.SSLSocket:
        """The socket that takes `bare`'s place, also among those to shut down at the end."""
        secured = context.wrap_socket(bare, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._sockets.discard(bare)
            self._sockets.add(secured)
        try:
            if self._released.is_set():
                raise OSError("the server is closed")
            secured.do_handshake()
        except OSError:
            with self._lock:
                self._sockets.discard(secured)
            secured.close()
            raise
        return secured

    def _next(self, asked: Asked) -> Answer:
        with self._lock:
            self._asked.append(asked)
            script = self._scripts.get(asked.path, [Answer(404)])
            scripted = script.pop(0) if len(script) > 1 else script[0]
        return scripted if isinstance(scripted, Answer) else scripted(asked)

    def _reply(self, peer: socket.socket, asked: Asked, answer: Answer) -> bool:
        """Whether the connection goes on."""
        if answer.hang_up:
            return False
        peer.sendall(_head(answer) if answer.raw is None else answer.raw)
        body = b"" if asked.method == "HEAD" else _framed(answer)
        ends = [position for position in (answer.cut_after, answer.stall_after) if position is not None]
        self._send(peer, body[: min(ends)] if ends else body, answer.drip)
        if answer.stall_after is not None:
            self._wait_left(peer)
            return False
        if answer.cut_after is not None:
            if answer.reset:  # linger 0: the peer gets a reset, not an orderly end
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        return answer.framing != "close"

    def _wait_left(self, peer: socket.socket) -> None:
        """Until the client goes away, or the server is closed."""
        while not self._released.wait(_LOOK_SECONDS):
            readable, _, _ = select.select([peer], [], [], 0)
            if readable and not peer.recv(1):
                return

    def _send(self, peer: socket.socket, data: bytes, drip: tuple[int, float] | None) -> None:
        size, pause = drip or (max(1, len(data)), 0.0)
        for start in range(0, len(data), size):
            if start and self._released.wait(pause):
                return
            peer.sendall(data[start : start + size])


def blob(data: bytes, *headers: tuple[str, str]) -> Callable[[Asked], Answer]:
    """A file that is served in whole or from an offset on, as registries serve blobs."""

    def serve(asked: Asked) -> Answer:
        wanted = _RANGE.fullmatch(asked.headers.get("range", ""))
        if wanted is None:
            return Answer(200, data, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if first > last:
            return Answer(416, b"", [("Content-Range", f"bytes */{len(data)}")])
        content_range = ("Content-Range", f"bytes {first}-{last}/{len(data)}")
        return Answer(206, data[first : last + 1], [content_range, *headers])

    return serve


def redirect(location: str, status: int = 307) -> Answer:
    """An answer that sends clients elsewhere."""
    return Answer(status, b"elsewhere", [("Location", location)])


def challenge(*values: str, body: bytes = b"") -> Answer:
    """A 401 with these WWW-Authenticate headers."""
    return Answer(401, body, [("WWW-Authenticate", value) for value in values])


def document(content: Any, status: int = 200, *headers: tuple[str, str]) -> Answer:
    """An answer in JSON."""
    return Answer(status, json.dumps(content).encode(), [("Content-Type", "application/json"), *headers])


def server_context(tls: Tls) -> ssl.SSLContext:
    """A server's context with the certificate of `tls`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def _read(stream: Any) -> Asked | None:
    line = stream.readline().decode("latin-1").split()
    if len(line) != 3 or not line[2].startswith("HTTP/"):
        return None  # the end of the connection, or bytes of something else, such as a handshake
    headers: dict[str, str] = {}
    while (header := stream.readline().decode("latin-1").strip()) != "":
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", "0")))
    path, _, query = line[1].partition("?")
    return Asked(line[0], path, query, MappingProxyType(headers), body)


def _head(answer: Answer) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} Scripted", *(f"{name}: {value}" for name, value in answer.headers)]
    if answer.framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
    elif answer.framing == "close":
        lines.append("Connection: close")
    else:
        lines.append(f"Content-Length: {len(answer.body) if answer.declared is None else answer.declared}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _framed(answer: Answer) -> bytes:
    if answer.framing != "chunked":
        return answer.body
    pieces = [answer.body[start : start + 1000] for start in range(0, len(answer.body), 1000)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@dataclass(slots=True)
class Names:
    """A resolver for tests, to be used as a pool's `lookup`: the names it knows have these addresses, any port."""

    known: Mapping[str, Sequence[str]]
    asked: list[str] = field(default_factory=list)

    def __call__(self, host: str, port: int, **_: Any) -> list[tuple[int, int, int, str, Any]]:
        self.asked.append(host)
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in self.known[host]
        ]
