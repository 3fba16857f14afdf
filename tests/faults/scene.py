"""One pull through a registry that misbehaves: a real registry behind a Gateway, the rooms of a node put together as
everywhere, and what must be true whatever happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from modelmount import wiring
from modelmount.cli import pulling
from modelmount.config import Pull, Registry, Settings
from modelmount.config.schema import Auth, Limits
from modelmount.registry.credentials import Credential
from modelmount.transport.body import Pace
from modelmount.transport.dial import Lookup
from modelmount.volumes.volume import VolumeSpec
from tests.e2e.conftest import contents, random_bytes
from tests.fakes import push, registry
from tests.fakes.gateway import Act, Fault, Gateway
from tests.fakes.wire import Asked, WireServer
from tests.faults import oracle

MIB = 1 << 20
WEIGHTS_BYTES = 3 * MIB + 123
ARCHIVE_BYTES = 700_000
ALICE = Credential(username="alice", password="wonder-land-9")
ANONYMOUS = Credential.anonymous()
SECONDS = 100.0
PATIENT = Pull(connect_timeout_seconds=20, read_timeout_seconds=20, document_timeout_seconds=20)
"""For rows in which nobody falls silent: a loaded machine must not look like a fault."""
QUICK = Pull(connect_timeout_seconds=1, read_timeout_seconds=1, document_timeout_seconds=2)


@dataclass(frozen=True)
class Model:
    """A model in a real registry: `config.json` (fetched in a group), weights, and a packed directory."""

    registry: registry.Registry
    pushed: push.Pushed
    files: dict[str, bytes]
    small: str
    weights: str
    archive: str

    @property
    def size(self) -> int:
        return self.pushed.size


def write(directory: Path) -> dict[str, bytes]:
    """The model's files."""
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "llama"}\n')
    (directory / "model.safetensors").write_bytes(random_bytes(WEIGHTS_BYTES, 1))
    (directory / "tokenizer/vocab.txt").write_bytes(random_bytes(ARCHIVE_BYTES, 2))
    return contents(directory)


@contextlib.contextmanager
def model_in(started: registry.Registry, directory: Path, authorization: str | None = None) -> Iterator[Model]:
    """Push the model into a registry that runs."""
    files = write(directory)
    pusher = push.Pusher(started.host, started.connection, authorization=authorization)
    pushed = pusher.artifact("llm/tiny", "v1", push.oras(directory, packed=["tokenizer"]))
    small, weights, archive = pushed.layers
    yield Model(started, pushed, files, small, weights, archive)


class Scene:
    """A node that reaches the model's registry through `gateway`, with an empty store.

    `storage` is where a registry may redirect to, `elsewhere` a host that nobody should ask anything. Waits between
    tries are computed as always, kept in `waits`, and not waited for.
    """

    def __init__(
        self, directory: Path, model: Model, gateway: Gateway, storage: Gateway, elsewhere: WireServer
    ) -> None:
        self.directory, self.model = directory, model
        self.gateway, self.storage, self.elsewhere = gateway, storage, elsewhere
        self.host = gateway.host
        self.store = directory / "store"
        self.waits: list[tuple[float, float | None]] = []
        self.pull_settings = PATIENT
        self.credential: Credential | None = ANONYMOUS
        self.docker_config: str | None = None
        self.tag = ":v1"
        self.hurry = True
        self.ca_file: str | None = None
        self.listed: dict[str, Registry] = {}
        self.node: wiring.Node | None = None
        self.pace = Pace()
        self.lookup: Lookup = socket.getaddrinfo
        self._fetched = _fetched()
        self._threads = set(threading.enumerate())

    # -- what happens

    def play(self, concerns: Callable[[Asked], bool] | str, act: Act, times: int | None = 1) -> None:
        """Let the gateway do this to the requests of `concerns`, a predicate or a digest."""
        self.gateway.play(Fault(of(concerns) if isinstance(concerns, str) else concerns, act, times))

    def go_through(self, gateway: Gateway, *, ca_file: str | None = None) -> None:
        """Reach the registry through another gateway from now on."""
        self.close()
        self.gateway, self.host, self.ca_file = gateway, gateway.host, ca_file

    def pull(self) -> dict[str, bytes]:
        """Pull the model, as the command line does; its files as they would be mounted. Raises what it ends with."""
        if self.node is None:
            self.node = wiring.build(self.settings())
        spec = VolumeSpec.parse({"model": f"{self.host}/llm/tiny{self.tag}", "pullPolicy": "Always"})
        credential = self.credential or self.node.credentials.find(spec.reference.repository, {})
        _, tree = pulling.pull(self.node, spec, credential, threading.Event())
        return contents(tree.root)

    def settings(self) -> Settings:
        own = Registry(plain_http=self.gateway.url.startswith("http:"), ca_file=self.ca_file)
        return Settings(
            root=str(self.store),
            registries={self.host: own, **self.listed},
            pull=self.pull_settings,
            limits=Limits(free_bytes=0),
            auth=Auth(docker_config=self.docker_config),
        )

    def close(self) -> None:
        if self.node is not None:
            self.node.close()
            self.node = None

    # -- what is seen

    @property
    def fetched(self) -> int:
        """Bytes of blobs that this scene's pulls received, skipped ones included."""
        return _fetched() - self._fetched

    def asked(self, digest: str, server: WireServer | None = None) -> list[Asked]:
        """The requests for a blob."""
        return [each for each in (server or self.gateway).asked() if of(digest)(each)]

    def ranges(self, digest: str, server: WireServer | None = None) -> list[str]:
        """The Range header of each request for a blob, empty where there was none."""
        return [each.headers.get("range", "") for each in self.asked(digest, server)]

    def lift_bar(self) -> None:
        """As if the time of every back-off on disk were over."""
        for path in (self.store / "backoff").iterdir():
            path.unlink()

    # -- what must be true

    def assert_sound(self) -> None:
        """After a pull has ended, whatever way: what is there is right, and nothing is held any longer."""
        assert oracle.faults(self.store) == []
        assert self.elsewhere.connections == 0
        self.close()
        assert list((self.store / "pulls").iterdir()) == []
        for lock in (self.store / "locks").iterdir():
            assert_free(lock)
        wait_for(lambda: not self.threads(), f"threads to end: {self.threads()}")
        wait_for(lambda: not self.gateway.open_connections, "connections to be closed")

    def threads(self) -> list[str]:
        """Names of the threads that run now and didn't when the scene was set, but for those of its servers, and for
        one that waits for the end of a helper, which stays for the next archive.
        """
        servers = ("wire", "token-server", "Thread-", "helper-end")
        return [
            thread.name
            for thread in threading.enumerate()
            if thread not in self._threads and not thread.name.startswith(servers)
        ]


def of(digest: str) -> Callable[[Asked], bool]:
    """Requests for this blob."""
    return lambda asked: asked.path.endswith(f"/blobs/{digest}")


def manifest(asked: Asked) -> bool:
    """Requests for a manifest."""
    return "/manifests/" in asked.path


def anything(asked: Asked) -> bool:
    """Every request."""
    return True


def go_on(asked: Asked) -> bool:
    """Requests that go on in the middle of a blob."""
    return "/blobs/" in asked.path and asked.headers.get("range", "bytes=0-")[:8] != "bytes=0-"


def assert_free(lock: Path) -> None:
    """Nobody holds the lock."""
    fd = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pytest.fail(f"{lock.name} is held")
    finally:
        os.close(fd)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Until it holds; fails after a while."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain for {what}")
        time.sleep(0.005)


def _fetched() -> int:
    return int(REGISTRY.get_sample_value("modelmount_fetched_bytes_total") or 0)
