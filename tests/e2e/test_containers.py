"""A real container reads a model: containerd and runc bind the volume's mount into it, as they do for a pod."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Node, contents, write_model
from tests.fakes import push
from tests.fakes.containerd import USERS, Containerd

pytestmark = [pytest.mark.mount, pytest.mark.registry]

SUMS = "cd /model && find . -type f | sort | xargs sha256sum"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with tempfile.TemporaryDirectory(prefix="mm-c-") as name:
        Path(name).chmod(0o711)
        with Containerd(Path(name) / "c") as started:
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


def test_a_container_with_users_of_its_own_reads_where_an_admin_left_the_flags_away(
    make_node: Callable[..., Node], containerd: Containerd, files: Path
) -> None:
    node = make_node(settings={"publish": {"mount_flags": []}})
    pod = node.pod("reader", node.pusher.artifact("llm/tiny", "v1", push.modelpack(files)).reference)
    node.kubelet.wait_running(pod)
    command = (
        f"read -r inside outside count < /proc/self/uid_map; echo $inside:$outside:$count; {SUMS}; touch /model/new"
    )
    read = containerd.run("reader", node.mount(pod), "sh", "-c", command, own_users=True)
    assert read.stdout == f"{USERS}\n{listing(files)}", read.stderr
    assert "Read-only file system" in read.stderr
