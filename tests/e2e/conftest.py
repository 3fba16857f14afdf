"""A node for end-to-end tests: a real registry, the real driver, a kubelet; and models of a few files."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import mounts, push
from tests.fakes.driver import Driver, Host
from tests.fakes.kubelet import Kubelet, Pod, Volume
from tests.fakes.registry import Registry


@dataclass
class Node:
    """One node and the registry it pulls from."""

    directory: Path
    registry: Registry
    driver: Driver
    kubelet: Kubelet

    @property
    def pusher(self) -> push.Pusher:
        """Pushes to this node's registry."""
        return push.Pusher(self.registry.host, self.registry.connection)

    def pod(self, name: str, reference: str, **attributes: str) -> Pod:
        """A pod with one inline volume."""
        return self.kubelet.run(Pod(name, (Volume("model", {"model": reference, **attributes}),)))

    def mount(self, pod: Pod) -> Path:
        """Where the pod's first volume is mounted."""
        return self.kubelet.target(pod, pod.volumes[0])

    def blobs(self) -> set[str]:
        """The digests that the store has in raw form."""
        return {f"sha256:{path.name}" for path in (self.driver.store / "blobs/sha256").iterdir()}

    def leases(self) -> list[Path]:
        """The lease files."""
        return sorted((self.driver.store / "volumes").glob("*.json"))


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose sockets fit into the 107 bytes of a unix socket's path."""
    with tempfile.TemporaryDirectory(prefix="mm-e2e-") as name:
        yield Path(name)
        mounts.detach_below(Path(name))


@pytest.fixture
def make_node(short: Path, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Starts a node, with a registry of its own unless it gets a running one; everything ends with the test."""
    with ExitStack() as stack:

        def make(
            *,
            registry: Registry | None = None,
            through: Host | None = None,
            settings: Mapping[str, Any] | None = None,
            environment: Mapping[str, str] | None = None,
            scale: float = 1.0,
        ) -> Node:
            if registry is None:
                registry = stack.enter_context(Registry(tmp_path / "registry"))
            hosts: list[Host] = [registry] if through is None else [registry, through]
            driver = stack.enter_context(Driver(short, hosts, settings=settings, environment=environment))
            kubelet = stack.enter_context(Kubelet(driver.kubelet_root, scale=scale))
            kubelet.wait_registered()
            return Node(short, registry, driver, kubelet)

        yield make


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """A node with the usual settings and an anonymous registry."""
    return make_node()


def write_model(directory: Path, *, weights: int = 300_000, seed: int = 0) -> Path:
    """A small model: nested directories, an empty file, weights of random bytes that `seed` decides."""
    (directory / "1_Pooling").mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "llama"}\n')
    (directory / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}\n')
    (directory / "empty.txt").write_bytes(b"")
    for shard in range(2):
        name = f"model-{shard + 1:05d}-of-00002.safetensors"
        (directory / name).write_bytes(random_bytes(weights, seed * 10 + shard))
    return directory


def random_bytes(count: int, seed: int) -> bytes:
    """Bytes that don't compress and are the same each time: SHAKE of the seed."""
    return hashlib.shake_128(seed.to_bytes(8, "little")).digest(count)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` by relative path."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def directories(directory: Path) -> set[str]:
    """Every directory below `directory`."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_dir()}


def is_read_only(path: Path) -> bool:
    """Whether the kernel refuses root to write there."""
    try:
        fd = os.open(path / ".probe", os.O_CREAT | os.O_WRONLY)
    except OSError:
        return True
    os.close(fd)
    return False
