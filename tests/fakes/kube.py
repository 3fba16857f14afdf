"""An API server of Kubernetes for one test: HTTPS, tokens, and the few objects that the driver asks for. It answers as
kube-apiserver does; tests/cluster asks the real one.
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.fakes import hunt
from tests.fakes.registry import Tls

Object = dict[str, Any]


class ApiServer:
    """Use as a context manager. `objects` are by path, as in `/api/v1/nodes/node1`; `requests` are what was asked,
    method and path; what is in `denied` is refused. Thread-safe for readers. At its end raises hunt.SecretFound where
    anything that it was sent has a secret in it, events above all.
    """

    def __init__(self, directory: Path) -> None:
        """`directory` becomes that of the service account: token and CA."""
        self.directory = directory
        self.tls = Tls.make(directory / "tls")
        (directory / "ca.crt").write_bytes(self.tls.ca_file.read_bytes())
        self.objects: dict[str, Object] = {}
        self.requests: list[tuple[str, str]] = []
        self.denied: set[str] = set()
        """Methods that the account has no right to."""
        self.broken = 0
        """So many requests more are answered with what isn't JSON."""
        self._passing = threading.Event()
        self._passing.set()
        self._lock = threading.Lock()
        self._sent: list[tuple[str, bytes]] = []
        self.token(f"token-{secrets.token_hex(8)}")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.tls.certificate, self.tls.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._passing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.demand_clean()

    def demand_clean(self) -> None:
        """Raises hunt.SecretFound, as the end does."""
        with self._lock:
            sent = list(self._sent)
        for what, body in sent:
            hunt.demand_clean(what, "the address of a request to the API server")
            hunt.demand_clean(body, f"what the API server was sent, {what}")

    @property
    def environment(self) -> dict[str, str]:
        """What the kubelet gives each container."""
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self._server.server_address[1])}

    @property
    def events(self) -> list[Object]:
        """The events that stand, oldest first."""
        with self._lock:
            return [o for path, o in self.objects.items() if "/events/" in path]

    def token(self, text: str) -> None:
        """From now on this token counts, and is in the account's directory."""
        self._token = hunt.plant("API server token", text)
        (self.directory / "token").write_text(text)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside the block nothing is answered; afterwards all of it is."""
        self._passing.clear()
        try:
            yield
        finally:
            self._passing.set()

    def answer(self, method: str, path: str, authorization: str | None, kind: str, body: bytes) -> tuple[int, Object]:
        """Status and document for a request."""
        with self._lock:
            self.requests.append((method, path))
            self._sent.append((f"{method} {path}", body))
        self._passing.wait()
        with self._lock:
            if authorization != f"Bearer {self._token}":
                return _status(401, "Unauthorized")
            if method in self.denied:
                return _status(403, f'forbidden: User "system:serviceaccount:ns:sa" cannot {method} {path}')
            if method == "POST":
                made = json.loads(body)
                where = f"{path}/{made['metadata']['name']}"
                if where in self.objects:
                    return _status(409, "already exists")
                self.objects[where] = made
                return 201, made
            found = self.objects.get(path)
            if found is not None and "/secrets/" in path:
                for value in found.get("data", {}).values():
                    hunt.plant_document(base64.b64decode(value).decode(errors="replace"))
            if found is None:
                return _status(404, f"{path} not found")
            if method == "PATCH":
                changed = _patched(found, kind, json.loads(body))
                if changed is None:
                    return _status(422, "the server rejected our request due to an error in our request")
                self.objects[path] = found = changed
            return 200, found


def _patched(found: Object, kind: str, change: Any) -> Object | None:
    if kind == "application/merge-patch+json":
        return {**found, **change}
    assert kind == "application/json-patch+json"
    copy: Object = json.loads(json.dumps(found))
    for each in change:
        *parents, last = each["path"].strip("/").split("/")
        place = copy
        for name in parents:
            place = place[name]
        if each["op"] == "test" and place.get(last) != each["value"]:
            return None
        if each["op"] == "replace":
            place[last] = each["value"]
    return copy


def _status(code: int, message: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


def _handler(api: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, kind = self.path.partition("?")[0], self.headers.get("Content-Type") or ""
            status, document = api.answer(self.command, path, self.headers.get("Authorization"), kind, body)
            data = json.dumps(document).encode()
            if api.broken:
                api.broken -= 1
                status, data = 200, b"<html>a proxy's page</html>"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def do_PATCH(self) -> None:
            self.do_GET()

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Requests are kept in the list."""

    return Handler
