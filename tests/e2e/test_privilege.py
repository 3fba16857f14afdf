"""What a driver at work may do, as the kernel has it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from modelmount.system import privilege
from tests.e2e.conftest import Node, contents, write_model
from tests.fakes import push
from tests.fakes.driver import Driver
from tests.fakes.kubelet import Kubelet
from tests.fakes.registry import Registry

pytestmark = [pytest.mark.mount, pytest.mark.registry]

CAPABILITIES = ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")
# As a container has it: a pid namespace of its own, and no file system that can be written to but the volumes of the
# chart, which lie below $1. That is shared with the node, as Bidirectional makes it. What other tests have mounted
# beside it is left alone.
CONTAINER = """
set -e
volumes=$1; shift
mount --make-private /
mount --make-private /proc
mount -t proc proc /proc
while read -r _ _ _ _ point _; do
  case $point/ in /proc/*|/sys/*|/dev/*|"${volumes%/*}"/?*) ;; *) mount -o remount,bind,ro "$point" ;; esac
done < /proc/self/mountinfo
if touch /modelmount-writable "${volumes%/*}/modelmount-writable" 2>/dev/null; then exit 9; fi
exec "$@"
"""


def status(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in (path / "status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}


def mask(names: frozenset[str]) -> str:
    """Of those that these tests have themselves."""
    return f"{sum(1 << privilege.NUMBERS[name] for name in names if privilege.holds(name)):016x}"


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for path in found for word in path.read_text().split()]


def helper_of(pid: int) -> int:
    """The one that unpacks."""
    (found,) = [each for each in children(pid) if b"snapshots" in Path(f"/proc/{each}/cmdline").read_bytes()]
    return found


def assert_keeps(pid: int, kept: frozenset[str]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            found = status(thread)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        nothing, some = "0" * 16, mask(kept)
        assert [found[name] for name in CAPABILITIES] == [some, some, some, nothing, nothing], found["Name"]
        assert found["NoNewPrivs"] == "1"
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert "Max core file size        1                    1 " in limits or "Max core file size        0 " in limits


def publish_packed(node: Node, tag: str, files: Path) -> None:
    """Model whose archive a helper's worker unpacks."""
    pushed = node.pusher.artifact("llm/packed", tag, push.modelpack(files, packing="tar+gzip"))
    pod = node.pod(f"reader-{tag}", pushed.reference)
    node.kubelet.wait_running(pod)
    assert contents(node.mount(pod)) == contents(files)
    node.kubelet.delete(pod)
    node.kubelet.wait_gone(pod)


def test_a_driver_and_its_helper_keep_what_their_work_takes(node: Node, tmp_path: Path) -> None:
    publish_packed(node, "v1", write_model(tmp_path / "model"))
    pid = node.driver.pid
    assert_keeps(pid, privilege.of_the_driver())
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) > 5
    helper = helper_of(pid)
    assert_keeps(helper, privilege.WORKERS)
    assert Path(f"/proc/{helper}/oom_score_adj").read_text() == "1000\n"
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) < 1000


def test_one_in_a_container_works_alike_and_writes_to_its_volumes_only(short: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "--bind", short, short], check=True)  # detached again by the fixture
    subprocess.run(["mount", "--make-rshared", short], check=True)
    (short / "tmp").mkdir()
    namespaces = ["unshare", "--mount", "--propagation", "unchanged", "--pid", "--fork", "--kill-child"]
    with (
        Registry(tmp_path / "registry") as registry,
        Driver(
            short,
            [registry],
            environment={"TMPDIR": str(short / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"},
            prefix=[*namespaces, "sh", "-c", CONTAINER, "sh", str(short)],
        ) as driver,
        Kubelet(driver.kubelet_root) as kubelet,
    ):
        kubelet.wait_registered()
        publish_packed(Node(short, registry, driver, kubelet), "v1", write_model(tmp_path / "model"))
        (first,) = children(driver.pid)
        (process,) = children(first)
        assert status(Path(f"/proc/{first}"))["NSpid"].split()[-1] == "1"
        assert_keeps(process, privilege.DRIVER)
        helper = helper_of(process)
        os.kill(helper, signal.SIGKILL)
        publish_packed(Node(short, registry, driver, kubelet), "v2", write_model(tmp_path / "other", seed=1))
        assert helper_of(process) != helper
        os.kill(first, signal.SIGTERM)
        assert driver.wait_exit() == 0
    assert [path.name for path in (short / "tmp").iterdir()] == []


def test_its_sockets_are_for_root_alone(short: Path) -> None:
    private = short / "csi.modelmount.io"
    private.mkdir(mode=0o755)  # as Kubernetes makes it
    driver = Driver(short, settings={"endpoint": f"unix://{private}/csi.sock"})
    driver.socket = private / "csi.sock"
    with driver:
        assert private.stat().st_mode & 0o777 == 0o700
        registration = driver.kubelet_root / "plugins_registry" / "csi.modelmount.io-reg.sock"
        for path in (driver.socket, registration):
            assert path.stat().st_mode & 0o777 == 0o600
