"""A real registry for tests: Debian's `docker-registry` as a child process on a free loopback port.

The registry picks its own port and says so in its log, so there is no race for one. What it served is read from its
own access log: a test that asserts "exactly one GET per blob" asserts what the server saw, not what the client
believes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import trustme

from tests.fakes import hunt

START_SECONDS = 100.0
_TAKEN = "address already in use"
_SENTINEL = "/v2/?sentinel="
_ACCESS_LINE = re.compile(
    r"\S+ \S+ \S+ \[[^\]]*\] "
    r'"(?P<method>[A-Z]+) (?P<uri>\S+) [^"]*" (?P<status>\d{3}) (?P<size>\d+|-) '
    r'"(?:[^"\\]|\\.)*" "(?P<agent>(?:[^"\\]|\\.)*)"'
)
"""Apache's combined log format, as gorilla/handlers writes it to the registry's standard output."""


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the access log. `size` is the number of body bytes handed to the connection, also when the client
    left early.
    """

    method: str
    path: str
    query: str
    status: int
    size: int
    user_agent: str

    @property
    def digest(self) -> str | None:
        """The digest a blob request asks for, None for anything else."""
        head, found, tail = self.path.rpartition("/blobs/")
        return tail if found and head.startswith("/v2/") and not tail.startswith("uploads/") else None


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """Bearer-token authentication: where clients get tokens, and whose signatures count (PEM file with the issuer's
    certificate).
    """

    realm: str
    service: str
    issuer: str
    certificates: Path


@dataclass(frozen=True, slots=True)
class Tls:
    """A server certificate for `localhost` and 127.0.0.1, signed by a CA made for one test; `ca_file` is what clients
    trust. Where `client_ca_file` is set, they have to show a certificate of that CA, as `client_file` is one.
    """

    certificate: Path
    key: Path
    ca_file: Path
    client_ca_file: Path | None = None
    client_file: Path | None = None

    @classmethod
    def make(cls, directory: Path, *names: str) -> Self:
        """Issue a fresh CA and certificate into `directory`, for `names` too."""
        directory.mkdir(parents=True, exist_ok=True)
        ca = trustme.CA()
        leaf = ca.issue_cert("localhost", "127.0.0.1", *names)
        made = cls(directory / "server.pem", directory / "server.key", directory / "ca.pem")
        made.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(made.key)
        ca.cert_pem.write_to_path(made.ca_file)
        return made

    def demanding(self, ca: trustme.CA) -> Self:
        """The same, for servers that want to see a certificate of `ca`."""
        directory = self.certificate.parent
        ca.cert_pem.write_to_path(directory / "clients.pem")
        ca.issue_cert("test@example.com").private_key_and_cert_chain_pem.write_to_path(directory / "test.pem")
        return replace(self, client_ca_file=directory / "clients.pem", client_file=directory / "test.pem")


class Registry:
    """One registry process with its storage, configuration and logs in `directory`.

    Anonymous and writable by default, on `address`. `users` (name to password) switches basic authentication on,
    `token` bearer tokens, `tls` https; `redirect_to` makes blob GETs answer 307 to that base URL. Use as a context
    manager, or `start` and `stop`: after a `stop`, `start` listens on the same port with the same storage, so that
    tests can take a registry away and bring it back. Not thread-safe, apart from `requests`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        users: Mapping[str, str] | None = None,
        token: TokenAuth | None = None,
        tls: Tls | None = None,
        redirect_to: str | None = None,
        read_only: bool = False,
        address: str = "127.0.0.1",
    ) -> None:
        self.directory = directory
        self.storage = directory / "storage"
        self.tls = tls
        self.users = dict(users or {})
        self.port = 0
        self._address = address
        self._token = token
        self._redirect_to = redirect_to
        self._read_only = read_only
        self._process: subprocess.Popen[bytes] | None = None
        self._outputs: list[IO[bytes]] = []
        self._skip = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def host(self) -> str:
        """`host:port` as it stands in references: a name where TLS wants one, the address otherwise."""
        return f"{'localhost' if self.tls else self._address}:{self.port}"

    @property
    def url(self) -> str:
        """Scheme and host, without a slash at the end."""
        return f"{'https' if self.tls else 'http'}://{self.host}"

    @property
    def pid(self) -> int:
        """The process to look at; raises when the registry doesn't run."""
        if self._process is None:
            raise RuntimeError("the registry does not run")
        return self._process.pid

    def start(self) -> None:
        """Start the process and return once it answers. Raises RuntimeError with the end of its log when it doesn't.

        Started again it wants the port it had, which another test may have for a moment: then it is tried again.
        """
        if self._process is not None:
            raise RuntimeError("the registry runs already")
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._start()
            except RuntimeError as e:
                if _TAKEN not in str(e) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _start(self) -> None:
        program = shutil.which("docker-registry")
        if program is None:
            raise RuntimeError("docker-registry is not installed; run scripts/setup as root")
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.yml"
        config.write_text(json.dumps(self._config(), indent=1))  # JSON is YAML
        access, log = (self.directory / "access.log").open("ab"), (self.directory / "registry.log").open("ab")
        offset = log.tell()
        self._outputs = [access, log]
        self._process = subprocess.Popen(
            [program, "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=access,
            stderr=log,
            cwd=self.directory,
            env={"PATH": "/usr/bin:/bin"},
        )
        try:
            self._wait(offset)
        except BaseException:
            self.stop()
            raise

    def stop(self, *, kill: bool = False) -> None:
        """End this process, and only this one; `kill` cuts its connections without a word."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            process.wait(START_SECONDS)
        for output in self._outputs:
            output.close()
        self._outputs = []

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside the block the registry accepts connections (the kernel does) and says nothing."""
        process = self._process
        if process is None:
            raise RuntimeError("the registry does not run")
        process.send_signal(signal.SIGSTOP)
        stopped = re.compile(r"^State:\tT", re.MULTILINE)
        while not stopped.search(Path(f"/proc/{process.pid}/status").read_text()):
            time.sleep(0.001)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def requests(self) -> list[Request]:
        """Every request answered since the start or the last `forget`, in the order in which they *ended*; across
        restarts.

        While the process runs, a request of our own goes through first, and the log has to have come to rest: a handler
        writes its line after the client has the last byte.
        """
        if self._process is not None:
            self._settle()
        return self._parsed()[self._skip :]

    def forget(self) -> None:
        """Make `requests` begin here."""
        self._skip += len(self.requests())

    def blob_gets(self) -> Counter[str]:
        """How many GETs that got content (200, 206, 307) each blob digest had: the measure of "nothing is fetched
        twice".
        """
        return Counter(
            r.digest for r in self.requests() if r.method == "GET" and r.digest and r.status in {200, 206, 307}
        )

    def manifest_requests(self) -> list[Request]:
        """The GETs and HEADs of manifests."""
        return [r for r in self.requests() if "/manifests/" in r.path and r.method in {"GET", "HEAD"}]

    def blob_file(self, digest: str) -> Path:
        """Where the registry keeps a blob, for tests that damage or remove it."""
        algorithm, _, value = digest.partition(":")
        return self.storage / "docker/registry/v2/blobs" / algorithm / value[:2] / value / "data"

    def connection(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        """A fresh connection that trusts this registry's CA."""
        if self.tls is None:
            return http.client.HTTPConnection(self._address, self.port, timeout=timeout)
        context = ssl.create_default_context(cafile=str(self.tls.ca_file))
        if self.tls.client_file is not None:
            context.load_cert_chain(self.tls.client_file)
        return http.client.HTTPSConnection("localhost", self.port, timeout=timeout, context=context)

    def _config(self) -> dict[str, Any]:
        http_section: dict[str, Any] = {"addr": f"{self._address}:{self.port}", "secret": secrets.token_hex(16)}
        if self.tls is not None:
            http_section["tls"] = {"certificate": str(self.tls.certificate), "key": str(self.tls.key)}
            if self.tls.client_ca_file is not None:
                http_section["tls"]["clientcas"] = [str(self.tls.client_ca_file)]
        maintenance: dict[str, Any] = {"uploadpurging": {"enabled": False}, "readonly": {"enabled": self._read_only}}
        storage = {
            "filesystem": {"rootdirectory": str(self.storage)},
            "delete": {"enabled": True},
            "maintenance": maintenance,
        }
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info", "formatter": "json"},
            "storage": storage,
            "http": http_section,
        }
        if self._redirect_to is not None:
            config["middleware"] = {"storage": [{"name": "redirect", "options": {"baseurl": self._redirect_to}}]}
        if self._token is not None:
            token = self._token
            config["auth"] = {
                "token": {
                    "realm": token.realm,
                    "service": token.service,
                    "issuer": token.issuer,
                    "rootcertbundle": str(token.certificates),
                }
            }
        elif self.users:
            for name, password in self.users.items():
                hunt.plant_login(name, password)
            passwords = self.directory / "htpasswd"
            passwords.write_text("".join(_bcrypt_line(name, password) for name, password in self.users.items()))
            config["auth"] = {"htpasswd": {"realm": "test-realm", "path": str(passwords)}}
        return config

    def _wait(self, offset: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        log = self.directory / "registry.log"
        while time.monotonic() < deadline:
            text = log.read_bytes()[offset:].decode(errors="replace")
            if found := re.search(r"listening on [^\"]*:(\d+)", text):
                self.port = int(found[1])
                self._ask(_SENTINEL + "start")
                return
            if self._process is None or self._process.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError(
            f"docker-registry did not start:\n{log.read_bytes()[offset:].decode(errors='replace')[-2000:]}"
        )

    def _ask(self, path: str) -> None:
        connection = self.connection(START_SECONDS)
        try:
            connection.request("GET", path)
            connection.getresponse().read()
        finally:
            connection.close()

    def _settle(self) -> None:
        sentinel = _SENTINEL + secrets.token_hex(8)
        self._ask(sentinel)
        log = self.directory / "access.log"
        deadline = time.monotonic() + START_SECONDS
        size = -1
        while time.monotonic() < deadline:
            text = log.read_bytes()
            if sentinel.encode() in text and len(text) == size:
                return
            size = len(text)
            time.sleep(0.03)
        raise RuntimeError("the registry's access log does not come to rest: a request is still being answered")

    def _parsed(self) -> list[Request]:
        log = self.directory / "access.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return [request for line in lines if (request := _parse(line)) is not None]


def _parse(line: str) -> Request | None:
    found = _ACCESS_LINE.fullmatch(line)
    if found is None:
        raise RuntimeError(f"docker-registry wrote an access line that we can't read: {line!r}")
    if found["uri"].startswith(_SENTINEL):
        return None
    path, _, query = found["uri"].partition("?")
    size = 0 if found["size"] == "-" else int(found["size"])
    return Request(found["method"], path, query, int(found["status"]), size, re.sub(r"\\(.)", r"\1", found["agent"]))


def _bcrypt_line(name: str, password: str) -> str:
    """A line for an htpasswd file; docker-registry takes bcrypt only."""
    program = shutil.which("htpasswd")
    if program is None:
        raise RuntimeError("htpasswd is not installed; run scripts/setup as root")
    made = subprocess.run(
        [program, "-nBi", "-C", "4", name], input=password, capture_output=True, text=True, check=True
    )
    return made.stdout.strip() + "\n"
