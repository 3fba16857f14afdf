"""`/metrics`, `/healthz` and `/readyz` over plain HTTP, for Prometheus and the kubelet's probes. Nothing in them is a
secret or names a tenant.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from modelmount.errors import ModelMountError, Precondition
from modelmount.service import ports

log = logging.getLogger(__name__)

CONNECTIONS = 16
"""Requests answered at the same time; further ones are hung up on. Enough for any number of scrapers that read."""
PATIENCE_SECONDS = 5.0
"""How long a client may take to send its request or to read the answer."""


class Endpoint:
    """Serves from `with` to its end, in threads of its own. Raises Precondition when the address can't be had.

    `health` is asked by each `/healthz`: 200 for a process that works or doesn't serve yet, 503 with the sentence it
    raises. `/readyz` says 503 for one that doesn't serve yet, too. Both say what it waits for.
    """

    def __init__(self, host: str, port: int, *, health: ports.Readiness) -> None:
        self._address = (host, port)
        self._health = health
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        host, port = self._address
        try:
            self._server = _Server(host, port, self._health)
        except OSError as e:
            raise Precondition(
                f"cannot serve metrics at {host}:{port}: {e.strerror}; choose another metrics_address"
            ) from e
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def port(self) -> int:
        """The port that is served: for port 0 the one the kernel chose."""
        if self._server is None:
            raise RuntimeError("the endpoint isn't served")
        return int(self._server.server_address[1])


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, health: ports.Readiness) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.health = health
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: that one asks the DNS for our name, and a start must not hang on a resolver.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of the metrics went away: %s", sys.exc_info()[1])


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "modelmount", ""
    timeout = PATIENCE_SECONDS

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, generate_latest(REGISTRY), CONTENT_TYPE_LATEST)
        elif path == "/healthz":
            self._answer(*self._health(waiting=200))
        elif path == "/readyz":
            self._answer(*self._health(waiting=503))
        else:
            self._answer(404, b"there are /metrics, /healthz and /readyz\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Requests are no news."""

    def _health(self, waiting: int) -> tuple[int, bytes]:
        try:
            state = self.server.health()
            return (waiting, f"{state}\n".encode()) if state else (200, b"ok\n")
        except ModelMountError as e:
            return 503, f"{e}\n".encode()

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
