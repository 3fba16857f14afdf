"""A driver's door on real sockets, with publications in memory behind it."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import msgspec
import pytest

from csi.registration import registration_pb2_grpc
from csi.v1 import csi_pb2, csi_pb2_grpc
from modelmount import config
from modelmount.service import server, sockets
from modelmount.volumes.volume import pod_namespace
from tests.fakes.publisher import EVENT_SECONDS, FakePromises, FakePublisher

CAPACITY = 123_456_789_000
"""What this node has for a model, as the doors of tests say."""
MOUNT = csi_pb2.VolumeCapability(
    mount=csi_pb2.VolumeCapability.MountVolume(),
    access_mode=csi_pb2.VolumeCapability.AccessMode(mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
)
BLOCK = csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=MOUNT.access_mode)


def publish_request(number: int = 0, **fields: object) -> csi_pb2.NodePublishVolumeRequest:
    """A good request; `fields` replace some of it."""
    request = csi_pb2.NodePublishVolumeRequest(
        volume_id=f"volume-{number}",
        target_path=f"/pods/{number}/mount",
        volume_capability=MOUNT,
        volume_context={"model": "registry.example.com/llm/tiny:v1"},
    )
    request.MergeFrom(csi_pb2.NodePublishVolumeRequest(**fields))  # type: ignore[arg-type]
    return request


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call failed."""

    code: grpc.StatusCode
    message: str
    metadata: Mapping[str, str | bytes]


def refusal(call: Callable[..., object], *arguments: object) -> Refusal:
    """How `call` fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    error = caught.value
    metadata = {item.key: item.value for item in error.trailing_metadata() or ()}
    return Refusal(error.code(), error.details() or "", metadata)


def raw(channel: grpc.Channel, path: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """A method that takes and gives bytes."""
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    return method


@dataclass
class Door:
    """One instance and a client of each service."""

    directory: Path
    settings: config.Settings
    publisher: FakePublisher
    server: server.Server
    fatal: list[str]
    ready: list[bool | Exception] = field(default_factory=lambda: [True])
    observed: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(sockets.target(self.settings.socket_path))
        self.identity = csi_pb2_grpc.IdentityStub(self.channel)
        self.controller = csi_pb2_grpc.ControllerStub(self.channel)
        self.node = csi_pb2_grpc.NodeStub(self.channel)
        self.registration_socket = self.directory / "reg" / f"{self.settings.driver_name}-reg.sock"
        self.registration_channel = grpc.insecure_channel(sockets.target(self.registration_socket))
        self.registration = registration_pb2_grpc.RegistrationStub(self.registration_channel)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path short enough for sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="mm"))
    (path / "reg").mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def open_door(directory: Path) -> Iterator[Callable[..., Door]]:
    """Starts a door with these settings; it is closed when the test ends, unless the test did."""
    doors: list[Door] = []

    def start(**changes: object) -> Door:
        plain = {
            "endpoint": f"unix://{directory}/csi/csi.sock",
            "registration_dir": f"{directory}/reg",
            "node_id": "node-1",
        }
        settings = msgspec.convert(plain | changes, config.Settings)
        ready: list[bool | Exception] = [True]
        fatal: list[str] = []
        observed: list[tuple[str, str]] = []
        publisher = FakePublisher()

        def readiness() -> str:
            if isinstance(ready[0], Exception):
                raise ready[0]
            return "" if ready[0] else "starting"

        made = server.Server(
            settings,
            server.Rooms(publisher, FakePromises(), readiness, capacity=lambda: CAPACITY, namespace=pod_namespace),
            on_fatal=fatal.append,
            observe=lambda method, code, seconds: observed.append((method, code)),
            check_seconds=0.02,
        )
        made.start()
        doors.append(Door(directory, settings, publisher, made, fatal, ready, observed))
        return doors[-1]

    yield start
    for door in doors:
        door.channel.close()
        door.registration_channel.close()
        door.server.stop(EVENT_SECONDS)


@pytest.fixture
def door(open_door: Callable[..., Door]) -> Door:
    """A door with the usual settings."""
    return open_door()


def eventually(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds."""
    pause = threading.Event()
    for _ in range(int(EVENT_SECONDS / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise TimeoutError("it never happened")
