"""A real container reads a model: containerd and runc bind the volume's mount into it, as they do for a pod."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Node, contents, write_model
from tests.fakes import push
from tests.fakes.containerd import Containerd

pytestmark = [pytest.mark.mount, pytest.mark.registry]

SUMS = "cd /model && find . -type f | sort | xargs sha256sum"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def containerd(short: Path) -> Iterator[Containerd]:
    with Containerd(short / "c") as started:
        yield started


def listing(directory: Path) -> str:
    """What SUMS prints of these files."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  ./{path}\n" for path, data in contents(directory).items())
    return "".join(sorted(lines, key=lambda line: line.partition("  ")[2]))


def test_a_container_reads_every_file_and_writes_none(node: Node, containerd: Containerd, files: Path) -> None:
    pod = node.pod("reader", node.pusher.artifact("llm/tiny", "v1", push.modelpack(files)).reference)
    node.kubelet.wait_running(pod)
    read = containerd.run("reader", node.mount(pod), "sh", "-c", SUMS)
    assert (read.returncode, read.stdout) == (0, listing(files)), read.stderr
    written = containerd.run("writer", node.mount(pod), "touch", "/model/config.json", "/model/new")
    assert written.returncode != 0
    assert written.stderr.count("Read-only file system") == 2
    node.kubelet.delete(pod)
    node.kubelet.wait_gone(pod)
    assert node.kubelet.leftovers() == []


def test_a_container_reads_on_while_driver_and_registry_are_gone(
    node: Node, containerd: Containerd, files: Path
) -> None:
    pod = node.pod("reader", node.pusher.artifact("llm/tiny", "v1", push.modelpack(files)).reference)
    node.kubelet.wait_running(pod)
    with containerd.running("reader", node.mount(pod), "sh", "-c", f"echo begun; read line; {SUMS}") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        node.driver.kill()
        node.registry.stop()
        read, _ = process.communicate("go on\n")
        assert read == listing(files)
    node.driver.start()
    node.kubelet.wait_registered()
    node.kubelet.delete(pod)
    node.kubelet.wait_gone(pod)
    assert node.kubelet.leftovers() == []
