"""A read-only registry whose every connection is capped, as real registries and object stores cap theirs: the kernel
paces each socket (man 7 socket, SO_MAX_PACING_RATE), so that no program's buffering can cheat.

Run as a program by `Paced`; prints its port. Serves one repository: a manifest under any name, and blobs with ranges.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.processes import FailedError
from tests.fakes.push import MANIFEST, Pushed
from tests.fakes.registry import Registry, Tls

SO_MAX_PACING_RATE = 47
"""asm-generic/socket.h."""
SENDFILE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]*)")


class Paced:
    """The server as a child process between `__enter__` and `__exit__`, for one artifact of a registry's storage."""

    def __init__(self, registry: Registry, pushed: Pushed, bytes_per_second: int) -> None:
        """Nothing runs yet."""
        self.tls: Tls | None = None
        self.host = ""
        config = json.loads(pushed.document)["config"]["digest"]
        self._given = {
            "rate": bytes_per_second,
            "manifest": pushed.document.decode(),
            "digest": pushed.digest,
            "blobs": {digest: str(registry.blob_file(digest)) for digest in (*pushed.layers, config)},
        }
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.paced", json.dumps(self._given)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        port = self._process.stdout.readline().strip() if self._process.stdout else ""
        if not port:
            raise FailedError("the paced server did not start")
        self.host = f"127.0.0.1:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    @property
    def pid(self) -> int:
        """The process whose CPU is the server's."""
        if self._process is None:
            raise FailedError("the paced server does not run")
        return self._process.pid

    @property
    def url(self) -> str:
        """Scheme and host."""
        return f"http://{self.host}"


def serve(given: dict[str, Any]) -> None:
    """Serve until killed."""
    manifest = given["manifest"].encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._manifest(body=False)

        def do_GET(self) -> None:
            if "/manifests/" in self.path:
                self._manifest(body=True)
            elif (path := given["blobs"].get(self.path.rpartition("/")[2])) is not None:
                self._blob(path)
            else:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _manifest(self, *, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", MANIFEST)
            self.send_header("Content-Length", str(len(manifest)))
            self.send_header("Docker-Content-Digest", given["digest"])
            self.end_headers()
            if body:
                self.wfile.write(manifest)

        def _blob(self, path: str) -> None:
            size = os.path.getsize(path)
            asked = _RANGE.fullmatch(self.headers.get("Range", ""))
            first = int(asked[1]) if asked else 0
            last = min(int(asked[2]), size - 1) if asked and asked[2] else size - 1
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(last + 1 - first))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            self.connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, given["rate"])
            with Path(path).open("rb") as file:
                while first <= last:
                    count = min(SENDFILE_BYTES, last + 1 - first)
                    first += os.sendfile(self.connection.fileno(), file.fileno(), first, count)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
