"""Where the clients pull from: nginx, which costs least and leaves the machine to them, and a real registry."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from bench.processes import FailedError, cpu_seconds
from tests.fakes.driver import Host
from tests.fakes.push import MANIFEST
from tests.fakes.registry import Registry, Tls

START_SECONDS = 20.0
REST_SECONDS = 0.03


class Server(Host, Protocol):
    """A registry, or something that serves a registry's blobs."""

    @property
    def url(self) -> str:
        """Scheme and host."""

    def cpu(self) -> float:
        """Seconds that it has worked so far."""

    def served(self) -> int:
        """Bytes of blobs that it has sent since it was last asked, from its own log."""


class Nginx:
    """nginx serving the files below `site` from `__enter__` to `__exit__`, over TLS 1.3 where a certificate is given.
    Two workers, sendfile, keep-alive without end; its log and socket lie in `directory`.
    """

    def __init__(self, directory: Path, site: Path, *, tls: Tls | None = None, address: str = "127.0.0.1") -> None:
        """Nothing runs yet. `address` is one that the calling thread's network namespace has at `__enter__`."""
        self.directory, self.tls = directory, tls
        self._site, self._address = site, address
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._port = _free_port(self._address)
        config = self.directory / "nginx.conf"
        config.write_text(self._config())
        with (self.directory / "nginx.words").open("wb") as words:
            self._process = subprocess.Popen(["nginx", "-c", str(config)], stdout=words, stderr=words)
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise FailedError(f"nginx did not start: {(self.directory / 'error.log').read_text()[-2000:]}")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    @property
    def host(self) -> str:
        """`host:port` as references have it."""
        return f"{self._address}:{self._port}"

    @property
    def url(self) -> str:
        """Scheme and host."""
        return f"{'https' if self.tls else 'http'}://{self.host}"

    def cpu(self) -> float:
        """Of its workers too."""
        if self._process is None:
            raise FailedError("nginx does not run")
        return cpu_seconds(self._process.pid)

    def served(self) -> int:
        """Once its log has come to rest: a line is written when an answer has ended."""
        log = self.directory / "access.log"
        size = -1
        while size != (size := log.stat().st_size):
            time.sleep(REST_SECONDS)
        with log.open() as file:
            file.seek(self._read)
            lines = file.read().splitlines()
            self._read = file.tell()
        return sum(int(count) for path, count in (line.split() for line in lines) if "/blobs/" in path)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self._address, self._port)) == 0

    def _config(self) -> str:
        secure = ""
        if self.tls is not None:
            secure = (
                f"ssl_certificate {self.tls.certificate}; ssl_certificate_key {self.tls.key}; "
                "ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;"
            )
        places = " ".join(
            f"{kind}_temp_path {self.directory}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return f"""daemon off; user root; worker_processes 2;
pid {self.directory}/nginx.pid; error_log {self.directory}/error.log;
events {{ worker_connections 1024; }}
http {{
  log_format bench '$uri $body_bytes_sent'; access_log {self.directory}/access.log bench;
  sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/octet-stream; {places}
  server {{
    listen {self._address}:{self._port}{" ssl" if secure else ""}; {secure}
    root {self._site};
    location = /v2/ {{ return 200 "{{}}"; }}
    location ~ /manifests/ {{ default_type {MANIFEST}; }}
  }}
}}
"""


class DockerRegistry:
    """Debian's docker-registry with the same blobs, while its `Registry` runs."""

    tls: Tls | None = None

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def host(self) -> str:
        """`host:port` as references have it."""
        return self._registry.host

    @property
    def url(self) -> str:
        """Scheme and host."""
        return self._registry.url

    def cpu(self) -> float:
        """Seconds that it has worked so far."""
        return cpu_seconds(self._registry.pid)

    def served(self) -> int:
        """From its access log."""
        found = sum(r.size for r in self._registry.requests() if r.method == "GET" and r.digest)
        self._registry.forget()
        return found


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probe:
        return int(probe.getsockname()[1])
