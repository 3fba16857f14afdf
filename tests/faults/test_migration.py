"""A store of the first layout under a running pod: killed at every place of its migration, the next start ends it, and
the pod's mount never goes.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import contents, write_model
from tests.fakes import first_layout, mounts, push
from tests.fakes.driver import ROOT, Driver
from tests.fakes.registry import Registry
from tests.faults import oracle

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(180)]

SOURCE = ROOT / "driver/modelmount/content/versions.py"
POINTS = sorted(set(re.findall(r'failpoint\(\s*"(content\.migration\.[a-z_]+)"', SOURCE.read_text())))


@dataclass
class Node:
    driver: Driver
    registry: Registry
    reference: str
    files: Path

    def publish(self, *pods: str) -> None:
        for pod in pods:
            target = self.driver.target(pod)
            self.driver.publish(f"volume-{pod}", target, {"model": self.reference})
            assert contents(target) == contents(self.files)

    def unpublish(self, *pods: str) -> None:
        for pod in pods:
            self.driver.unpublish(f"volume-{pod}", self.driver.target(pod))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="mm-move-") as name, Registry(tmp_path / "registry") as registry:
        files = write_model(tmp_path / "model")
        pushed = push.Pusher(registry.host, registry.connection).artifact("llm/tiny", "v1", push.modelpack(files))
        driver = Driver(Path(name), [registry])
        yield Node(driver, registry, pushed.reference, files)
        driver.kill()
        mounts.detach_below(Path(name))


def test_a_pod_keeps_its_mount_while_the_store_is_migrated_however_often_that_is_killed(node: Node) -> None:
    assert len(POINTS) >= 3
    driver, registry = node.driver, node.registry
    running = driver.target("running")
    driver.start()
    node.publish("running", "waiting")
    before = running.stat()
    driver.stop()
    mounts.detach_below(driver.kubelet_root / "pods" / "waiting")
    first_layout.turn_back(driver.store)
    registry.forget()
    for point in POINTS:
        driver.start(failpoints=f"{point}=kill", wait=False)
        assert driver.wait_exit() == -9, f"{point} was never reached"
        assert (driver.store / "version").read_text() == "1\n"
        assert contents(running) == contents(node.files)
        first_layout.turn_back(driver.store)  # the next one finds all of it to do, too
    driver.start(failpoints="content.migration.after_lease=kill", wait=False)
    assert driver.wait_exit() == -9
    driver.start()  # on what that left
    assert (driver.store / "version").read_text() == "2\n"
    assert oracle.faults(driver.store) == []
    # Both leases are known: one has its mount, the other gets it back, and nobody is asked for it.
    node.publish("running", "waiting")
    assert registry.requests() == []
    after = running.stat()
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
    assert len(mounts.below(driver.directory)) == 2
    (listed,) = json.loads(driver.run("ls", "--json").stdout)["models"]
    assert {use["target"] for use in listed["in_use"]} == {str(running), str(driver.target("waiting"))}
    node.unpublish("running", "waiting")
    node.publish("another")  # its view is known as well
    assert registry.blob_gets() == {}
    node.unpublish("another")
    assert list((driver.store / "volumes").iterdir()) == []
    assert mounts.below(driver.directory) == []


def test_a_newer_store_is_refused_and_its_mounts_stay(node: Node) -> None:
    driver = node.driver
    driver.start()
    node.publish("pod")
    driver.stop()
    (driver.store / "version").write_text("99\n")
    driver.start(wait=False)
    assert driver.wait_exit() == 1
    sentence = "has layout version 99, made by a newer modelmount"
    assert any(sentence in line["message"] for line in driver.lines())
    refused = driver.run("ls")
    assert refused.returncode != 0
    assert sentence in refused.stderr
    assert contents(driver.target("pod")) == contents(node.files)


def test_the_command_line_leaves_an_older_store_to_the_driver_that_uses_it(node: Node) -> None:
    driver = node.driver
    driver.start()
    node.publish("pod")
    (driver.store / "version").write_text("1\n")  # as if this were a driver of that version
    refused = driver.run("ls")
    assert refused.returncode != 0
    assert "upgrade the driver, which migrates the store when it starts" in refused.stderr
    driver.stop()
    assert driver.run("ls").returncode == 0  # now nobody else is there
    assert (driver.store / "version").read_text() == "2\n"
    assert contents(driver.target("pod")) == contents(node.files)
