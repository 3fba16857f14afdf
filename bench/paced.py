"""A read-only registry whose every connection is capped, as real registries and object stores cap theirs: the kernel
paces each socket (man 7 socket, SO_MAX_PACING_RATE), so that no program's buffering can cheat.

Run as a program by `Paced`; prints its port. Serves static files as nginx does in the other cases, with ranges, and
writes a line for each answer that ended: path, bytes asked for, bytes sent.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bench.processes import FailedError, cpu_seconds
from tests.fakes.push import MANIFEST
from tests.fakes.registry import Tls

BYTES_PER_SECOND = 50_000_000
SO_MAX_PACING_RATE = 47
"""asm-generic/socket.h."""
SENDFILE_BYTES = 1 << 20
SEND_BUFFER_BYTES = 128 << 10
"""The kernel doubles it. What waits there when a client dies was sent as far as the log knows."""
REST_SECONDS = 0.1
_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]*)")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a request for a blob."""

    asked: int
    sent: int


class Paced:
    """The server as a child process between `__enter__` and `__exit__`; its log lies in `directory`."""

    tls: Tls | None = None

    def __init__(self, directory: Path, site: Path, bytes_per_second: int = BYTES_PER_SECOND) -> None:
        """Nothing runs yet."""
        self.directory, self._site, self._rate = directory, site, bytes_per_second
        self.host = ""
        self._process: subprocess.Popen[str] | None = None
        self._read = 0

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._log.touch()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.paced", str(self._site), str(self._log), str(self._rate)],
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
    def url(self) -> str:
        """Scheme and host."""
        return f"http://{self.host}"

    def cpu(self) -> float:
        """Seconds that it has worked so far."""
        if self._process is None:
            raise FailedError("the paced server does not run")
        return cpu_seconds(self._process.pid)

    def served(self) -> int:
        """Bytes of blobs that it has sent since it was last asked."""
        return sum(answer.sent for answer in self.answers())

    def answers(self) -> list[Answer]:
        """The answers that ended since it was last asked, once the log has come to rest."""
        size = -1
        while size != (size := self._log.stat().st_size):
            time.sleep(REST_SECONDS)
        with self._log.open() as file:
            file.seek(self._read)
            lines = [line.split() for line in file.read().splitlines()]
            self._read = file.tell()
        return [Answer(int(asked), int(sent)) for path, asked, sent in lines if "/blobs/" in path]

    @property
    def _log(self) -> Path:
        return self.directory / "paced.log"


def serve(site: Path, log: IO[str], rate: int) -> None:
    """Serve until killed."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = site / self.path.lstrip("/")
            if not path.is_file():
                self.send_response(200 if self.path == "/v2/" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size = path.stat().st_size
            asked = _RANGE.fullmatch(self.headers.get("Range", ""))
            first = int(asked[1]) if asked else 0
            last = min(int(asked[2]), size - 1) if asked and asked[2] else size - 1
            self.send_response(206 if asked else 200)
            self.send_header("Content-Type", MANIFEST if "/manifests/" in self.path else "application/octet-stream")
            self.send_header("Content-Length", str(last + 1 - first))
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            if body:
                self._send(path, first, last + 1)

        def _send(self, path: Path, first: int, end: int) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
            position = first
            try:
                with path.open("rb") as file:
                    while position < end:
                        count = min(SENDFILE_BYTES, end - position)
                        position += os.sendfile(self.connection.fileno(), file.fileno(), position, count)
            except OSError:  # the client went away
                self.close_connection = True
            finally:
                log.write(f"{self.path} {end - first} {position - first}\n")
                log.flush()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # accepted sockets inherit it
    print(server.server_address[1], flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    with open(sys.argv[2], "a", encoding="ascii") as words:  # noqa: PTH123
        serve(Path(sys.argv[1]), words, int(sys.argv[3]))
