"""One node in this process: its store, pulls and publications; real registry, real mounts below a kubelet root."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelmount.cache.admission import Admission
from modelmount.cache.collector import Collector
from modelmount.config import Settings
from modelmount.content.store import Store
from modelmount.errors import ModelMountError
from modelmount.oci.descriptor import Descriptor
from modelmount.pull.puller import Puller
from modelmount.pull.resolver import Model, Resolver
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential, Credentials
from modelmount.signatures.finder import Finder
from modelmount.sources.base import BlobSource, Opened
from modelmount.sources.registry import RegistrySource
from modelmount.volumes import recovery
from modelmount.volumes.leases import Lease, Leases
from modelmount.volumes.local import LocalMounts
from modelmount.volumes.publisher import Publisher
from tests.fakes import kubelet_disk, mounts, push
from tests.fakes.registry import Registry

EVENT_SECONDS = 60.0
"""How long a test waits for something that has to happen; not a duration that any test expects."""
POD_UID = "csi.storage.k8s.io/pod.uid"


@dataclass(frozen=True, slots=True)
class Request:
    volume_id: str
    target_path: str
    attributes: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    mount_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    deadline: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)


class HeldSource:
    """A registry whose blobs come only while the gate is open."""

    def __init__(self, source: BlobSource, gate: threading.Event) -> None:
        self.name = source.name
        self._source, self._gate = source, gate

    def open(self, descriptor: Descriptor, offset: int, end: int | None = None) -> Opened:
        if not self._gate.wait(EVENT_SECONDS):
            raise TimeoutError("the test never opened the gate")
        return self._source.open(descriptor, offset, end)

    @property
    def origin(self) -> BlobSource:
        """Itself."""
        return self

    @property
    def elsewhere(self) -> Mapping[str, int]:
        return {}

    def blame(self, descriptor: Descriptor, reason: str) -> bool:
        return self._source.blame(descriptor, reason)


class Node:
    """A driver without its door. `gate` holds back every blob while it is closed."""

    def __init__(self, directory: Path, registry: Registry, settings: Mapping[str, Any]) -> None:
        self.directory, self.registry = directory, registry
        self.pods = directory / "kubelet" / "pods"
        self.pods.mkdir(parents=True)
        kubelet_disk.write_config(directory / "kubelet")
        admin = {
            "root": str(directory / "store"),
            "kubelet_root": str(directory / "kubelet"),
            "registries": {registry.host: {"plain_http": True}},
            "limits": {"free_bytes": 0},
            **settings,
        }
        self.settings = msgspec.convert(admin, Settings)
        self.store = Store(directory / "store")
        self.leases = Leases(self.store)
        self.gate = threading.Event()
        self.gate.set()
        self.repository = f"llm/{uuid.uuid4().hex[:12]}"
        registry.forget()
        self.start()

    def start(self) -> None:
        """As a start of the driver, without recovery."""
        self.client = Client(self.settings)
        self.credentials = Credentials(self.settings)
        self.resolver = Resolver(self.store, self.client, self.settings.auth)
        admission = Admission(Collector(self.store, lambda: self.settings.cache), lambda: self.settings)
        self.puller = Puller(self.store, self.resolver, self._source, admission, self.settings)
        rooms = (self.store, self.resolver, self.puller, self.credentials, self.settings)
        self.publisher = Publisher(*rooms, signatures=Finder(self.store, self.client))
        self.local = LocalMounts(*rooms)

    def stop(self) -> None:
        self.gate.set()
        self.puller.stop(EVENT_SECONDS)
        self.client.close()

    def restart(self) -> recovery.Recovered:
        """The driver ends and starts."""
        self.stop()
        self.start()
        return recovery.recover(self.store, self.settings)

    def reboot(self) -> recovery.Recovered:
        """Mounts are gone, and the leases are of another boot."""
        self.stop()
        mounts.detach_below(self.directory)
        for path in self.lease_files():
            record = json.loads(path.read_bytes())
            path.write_text(json.dumps({**record, "boot_id": "another boot", "mount_namespace": 1}))
        self.start()
        return recovery.recover(self.store, self.settings)

    def push(self, files: Mapping[str, bytes] | None = None, *, tag: str = "v1") -> push.Pushed:
        """Push a model of this node's own repository."""
        directory = self.directory / f"model-{uuid.uuid4().hex}"
        for name, data in (files or {"config.json": b"{}\n", "sub/model.safetensors": os.urandom(1000)}).items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)
        pusher = push.Pusher(self.registry.host, self.registry.connection)
        pushed = pusher.artifact(self.repository, tag, push.modelpack(directory))
        self.registry.forget()
        return pushed

    def target(self, name: str = "pod", *, parents: bool = True) -> Path:
        """Where the kubelet wants the volume of a pod."""
        target = self.pods / name / "volumes/kubernetes.io~csi/model/mount"
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def publish(
        self,
        target: Path | str,
        model: str | None = None,
        *,
        volume: str = "volume",
        call: Call | None = None,
        flags: tuple[str, ...] = (),
        **attributes: str,
    ) -> None:
        own = {**({} if model is None else {"model": model}), **attributes, POD_UID: "a-pod"}
        request = Request(volume, str(target), own, {}, flags)
        self.publisher.publish(request, call or Call(time.monotonic() + EVENT_SECONDS))

    def unpublish(self, target: Path | str, *, volume: str = "volume") -> None:
        self.publisher.unpublish(volume, str(target))

    def lease(self, target: Path, volume: str = "volume") -> Lease:
        lease = self.leases.read(volume, str(target))
        assert lease is not None
        return lease

    def lease_files(self) -> list[Path]:
        return sorted((self.store.root / "volumes").glob("*.json"))

    def assert_nothing_left(self) -> None:
        assert mounts.below(self.directory) == []
        assert self.lease_files() == []
        assert list(self.pods.rglob("mount")) == []

    def background(self, action: Callable[[], None]) -> Background:
        return Background(action)

    def await_waiting(self, count: int = 1) -> None:
        """Return once `count` publishes wait for their pull."""
        until(lambda: sum(len(job._waiters) for job in self.puller.jobs()) == count)

    def _source(self, model: Model, credential: Callable[[], Credential], is_awaited: Callable[[], bool]) -> HeldSource:
        return HeldSource(RegistrySource(self.client, model.repository, credential), self.gate)


class Background:
    """A call in a thread of its own, and what became of it."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> ModelMountError | None:
        """None for success; raises what wasn't raised on purpose."""
        self._thread.join(EVENT_SECONDS)
        assert not self._thread.is_alive(), "the call hangs"
        if self._error is not None and not isinstance(self._error, ModelMountError):
            raise self._error
        return self._error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._action()
        except Exception as e:  # noqa: BLE001 - shown to the test's own thread
            self._error = e


def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + EVENT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` by relative path."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


MakeNode = Callable[..., Node]


@pytest.fixture
def make_node(tmp_path: Path, registry: Registry) -> Iterator[MakeNode]:
    made: list[Node] = []

    def make(registry: Registry = registry, **settings: Any) -> Node:
        made.append(Node(tmp_path / f"node-{len(made)}", registry, settings))
        return made[-1]

    yield make
    for node in made:
        node.stop()
    mounts.detach_below(tmp_path)


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    return make_node()
