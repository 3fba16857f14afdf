"""SIGKILL at every failpoint of the driver, one run each: whatever was half done, the next start needs no repair, no
verified byte is fetched a third time, and the pod gets its model.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from modelmount.content import checkpoints
from tests.e2e.conftest import contents, random_bytes, write_model
from tests.fakes import mounts, push
from tests.fakes.driver import ROOT, Driver
from tests.fakes.registry import Registry
from tests.faults import oracle

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(300)]

_CALL = re.compile(r'failpoint\(\s*"([a-z0-9_.]+)"')
ELSEWHERE = {
    "atomic.group_sync.before_sync": "only stores with many small files sync in groups; tests/unit/system kills there",
}
"""Failpoints that a publish and an unpublish of one model don't pass, and where they are visited instead."""


OF_OTHERS = ("cache.", "content.migration.")
"""Begin the failpoints that only a collection passes (tests/unit/cache/test_kills.py), or only the start on an older
store (tests/faults/test_migration.py); all of them are found and killed at there.
"""
CHECKPOINT = {"content.ingest.checkpoint"}
"""Passed only by a layer of 32 MiB and more."""


def names() -> list[str]:
    """Every failpoint of the sources: a new one is killed at without being listed anywhere."""
    found = {name for path in (ROOT / "driver").rglob("*.py") for name in _CALL.findall(path.read_text())}
    return sorted(name for name in found - ELSEWHERE.keys() if not name.startswith(OF_OTHERS))


@dataclass
class Published:
    """A model with raw layers and an archive in a real registry, and one with an uncompressed archive that is worth a
    checkpoint.
    """

    registry: Registry
    pushed: push.Pushed
    files: dict[str, bytes]
    big: push.Pushed
    big_files: dict[str, bytes]

    def visiting(self, name: str) -> tuple[str, dict[str, bytes]]:
        """Reference and files of a model whose pull passes the failpoint `name`."""
        if name in CHECKPOINT:
            return self.big.reference, self.big_files
        return self.pushed.reference, self.files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    directory = tmp_path_factory.mktemp("kills")
    files = write_model(directory / "model")
    with Registry(directory / "registry") as registry:
        pusher = push.Pusher(registry.host, registry.connection)
        pushed = pusher.artifact("llm/tiny", "v1", push.oras(files, packed=["1_Pooling"]))
        weights = directory / "big"
        weights.mkdir()
        (weights / "model.safetensors").write_bytes(random_bytes(checkpoints.CHECKPOINT_BYTES + 1, 9))
        big = pusher.artifact("llm/big", "v1", push.modelpack(weights, packing="tar"))
        yield Published(registry, pushed, contents(files), big, contents(weights))


@pytest.fixture
def driver(model: Published) -> Iterator[Driver]:
    with tempfile.TemporaryDirectory(prefix="mm-kill-") as name:
        driver = Driver(Path(name), [model.registry])
        yield driver
        driver.kill()
        mounts.detach_below(Path(name))


def use(driver: Driver, model: Published, name: str) -> bool:
    """Publish and unpublish as a kubelet would; False when the driver died on the way."""
    target = driver.target("pod")
    reference, files = model.visiting(name)
    try:
        driver.publish("volume", target, {"model": reference})
        assert contents(target) == files
        driver.unpublish("volume", target)
    except grpc.RpcError:
        return False
    return True


@pytest.mark.parametrize("name", names())
def test_killed_there_the_next_start_goes_on(name: str, driver: Driver, model: Published) -> None:
    model.registry.forget()
    driver.start(failpoints=f"{name}=kill", wait=False)
    died_starting = not _comes_up(driver)
    survived = not died_starting and use(driver, model, name)
    assert not survived, f"failpoint {name} was never reached"
    assert driver.wait_exit() == -9
    assert oracle.faults(driver.store) == []

    driver.start()
    assert oracle.half_made(driver.store) == []
    assert use(driver, model, name)
    assert oracle.faults(driver.store) == []
    assert mounts.below(driver.directory) == []
    assert list((driver.store / "volumes").glob("*.json")) == []
    assert not driver.target("pod").exists()
    assert max(model.registry.blob_gets().values()) <= 2


@pytest.mark.parametrize(
    "name", ["content.blob.after_rename", "snapshots.tree.before_rename", "volumes.lease.after_write"]
)
def test_once_committed_nothing_is_fetched_again_after_a_kill(name: str, driver: Driver, model: Published) -> None:
    driver.start(failpoints=f"{name}=kill")
    assert not use(driver, model, name)
    driver.wait_exit()
    committed = {f"sha256:{path.name}" for path in (driver.store / "blobs/sha256").glob("[0-9a-f]*")}
    model.registry.forget()
    driver.start()
    assert use(driver, model, name)
    assert set(model.registry.blob_gets()) & committed == set()


def _comes_up(driver: Driver) -> bool:
    try:
        driver.wait_ready()
    except RuntimeError:
        return False
    return True
