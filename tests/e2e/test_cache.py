"""A node whose disk is too small for all its models: what is in use stays, the rest makes room, nobody is surprised."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Node, contents, random_bytes
from tests.fakes import push
from tests.fakes.kubelet import Pod, Volume
from tests.faults import oracle
from tests.unit.content import powercut
from tests.unit.system.processes import bound

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(300)]

MIB = 1 << 20
MODEL = 16 * MIB
SETTINGS = {"cache": {"grace_seconds": 0.0, "free_inodes": 0}}


@pytest.fixture
def disk(short: Path, tmp_path: Path) -> Iterator[Path]:
    """The store on a file system of 92 MiB: room for four models."""
    with powercut.powered(tmp_path, 92 * MIB) as small:
        (short / "store").mkdir()
        with bound(small.path, short / "store"):
            yield small.path


def pushed(node: Node, tmp_path: Path, name: str) -> str:
    directory = tmp_path / name
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(random_bytes(MODEL, int.from_bytes(name.encode(), "big")))
    return node.pusher.artifact(f"llm/{name}", "v1", push.modelpack(directory)).reference


def models(node: Node) -> dict[str, bool]:
    """Names of the models that are complete here, and whether somebody uses them."""
    listed = json.loads(node.driver.run("ls", "--json").stdout)["models"]
    return {
        model["references"][0].split("/")[-1].partition(":")[0]: bool(model["in_use"])
        for model in listed
        if model["complete"]
    }


def test_models_in_use_stay_others_make_room_and_what_cannot_fit_waits(
    make_node: Callable[..., Node], disk: Path, tmp_path: Path
) -> None:
    node = make_node(settings=SETTINGS)
    references = {name: pushed(node, tmp_path, name) for name in "abcdef"}
    pods = {}

    def run(name: str) -> None:
        pods[name] = node.pod(name, references[name])
        node.kubelet.wait_running(pods[name])
        assert contents(node.mount(pods[name])) == contents(tmp_path / name)

    def end(name: str) -> None:
        node.kubelet.delete(pods[name])
        node.kubelet.wait_gone(pods[name])

    for name in "abcd":
        run(name)
    end("b")
    end("c")
    # Of the two that nobody uses, the one goes that was given up first.
    run("e")
    assert models(node) == {"a": True, "c": False, "d": True, "e": True}
    # No restart in between: what is on the disk says who holds what.
    node.driver.restart(kill=True)
    run("f")
    assert models(node) == {"a": True, "d": True, "e": True, "f": True}
    node.registry.forget()
    waiting = node.pod("b", references["b"])
    node.kubelet.wait_event("FailedMount", "ResourceExhausted", pod=waiting)
    message = next(text for text in node.kubelet.messages(waiting) if "ResourceExhausted" in text)
    assert "16.8 MB more are needed" in message
    assert "mounted" in message
    assert sum(count for digest, count in node.registry.blob_gets().items() if count) == 0
    end("d")
    node.kubelet.wait_running(waiting)
    assert models(node) == {"a": True, "b": True, "e": True, "f": True}
    for name in "aef":
        assert contents(node.mount(pods[name])) == contents(tmp_path / name)
    assert oracle.faults(disk) == []
    assert node.driver.run("gc", "--all").returncode == 0
    assert models(node) == {"a": True, "b": True, "e": True, "f": True}
    assert os.listdir(disk / "trash") == []


def test_a_changed_budget_counts_in_a_running_driver(
    make_node: Callable[..., Node], disk: Path, tmp_path: Path
) -> None:
    node = make_node(settings={"cache": {**SETTINGS["cache"], "max_bytes": 3 * MODEL // 2}})
    first, second = (pushed(node, tmp_path, name) for name in "ab")
    pod = node.pod("a", first)
    node.kubelet.wait_running(pod)
    waiting = node.pod("b", second)
    node.kubelet.wait_event("FailedMount", "the cache may take 25.2 MB", pod=waiting)
    text = node.driver.config.read_text()
    replaced = text.replace(f'"max_bytes" = {3 * MODEL // 2}', f'"max_bytes" = {3 * MODEL}')
    assert replaced != text
    (node.driver.config.parent / "new.toml").write_text(replaced)
    (node.driver.config.parent / "new.toml").replace(node.driver.config)
    node.kubelet.wait_running(waiting)


def test_a_namespace_stays_within_its_quota_and_the_others_go_on(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    quota = 3 * MODEL // 2
    node = make_node(settings={"cache": {**SETTINGS["cache"], "namespaces": {"team-a": quota}}})
    references = {name: pushed(node, tmp_path, name) for name in "abc"}

    def pod(name: str, namespace: str) -> Pod:
        volume = Volume("model", {"model": references[name]})
        return node.kubelet.run(Pod(f"{namespace}-{name}", (volume,), namespace=namespace))

    first = pod("a", "team-a")
    node.kubelet.wait_running(first, 60)
    waiting = pod("b", "team-a")
    node.kubelet.wait_event("FailedMount", "ResourceExhausted", pod=waiting, timeout=60)
    message = node.kubelet.messages(waiting)[0]
    assert "16.8 MB more are needed for namespace 'team-a', which has 16.8 MB, of 25.2 MB that it may take" in message
    assert "0 B of it could be evicted; the rest is held: 16.8 MB mounted" in message
    other = pod("c", "team-b")
    node.kubelet.wait_running(other, 60)
    again = pod("a", "team-b")  # what is here is mounted, whoever brought it
    node.kubelet.wait_running(again, 60)
    known = json.loads(node.driver.run("du", "--json").stdout)["namespaces"]
    assert {each["name"]: (each["used"] // MODEL, each["quota"]) for each in known} == {
        "team-a": (1, quota),
        "team-b": (2, None),
    }
    node.kubelet.delete(first)
    node.kubelet.delete(again)
    node.kubelet.wait_running(waiting, 130)
    assert contents(node.mount(waiting)) == contents(tmp_path / "b")
    assert contents(node.mount(other)) == contents(tmp_path / "c")
    assert oracle.faults(node.driver.store) == []


def test_bad_bytes_are_put_away_under_a_running_pod_and_the_next_pod_gets_good_ones(node: Node, tmp_path: Path) -> None:
    reference = pushed(node, tmp_path, "a")
    running = node.pod("running", reference)
    node.kubelet.wait_running(running)
    blob = max((node.driver.store / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(MIB)
        file.write(b"a bit of rot")
        os.fsync(file.fileno())
    blob.chmod(0o444)
    found = node.driver.run("verify", "--json")
    assert found.returncode == 16
    (bad,) = json.loads(found.stdout)["result"]["bad"]
    (lease,) = (json.loads(path.read_bytes()) for path in node.leases())
    assert bad["volumes"] == [lease["volume_id"]]
    condition = node.kubelet.stats(running, running.volumes[0]).volume_condition
    assert condition.abnormal
    assert "quarantine" in condition.message
    # Whoever runs keeps what it has.
    assert sorted(contents(node.mount(running))) == ["model.safetensors"]
    following = node.pod("following", reference)
    node.kubelet.wait_running(following)
    assert contents(node.mount(following)) == contents(tmp_path / "a")
    assert not node.kubelet.stats(following, following.volumes[0]).volume_condition.abnormal
    assert oracle.faults(node.driver.store) == []
    assert node.driver.run("verify").returncode == 0
