"""Pods that vanish while the driver is away: what they held is free after a grace time, and what lives stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Node, contents, write_model
from tests.fakes import mounts, push
from tests.fakes.kubelet import Pod

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(300)]

SETTINGS = {"cache": {"vanished_seconds": 1.0, "grace_seconds": 0.0}}
TIMEOUT = 150.0


def pod_of(node: Node, tmp_path: Path, name: str, seed: int) -> Pod:
    files = write_model(tmp_path / name, seed=seed)
    pushed = node.pusher.artifact(f"llm/{name}", "v1", push.modelpack(files))
    pod = node.pod(name, pushed.reference)
    node.kubelet.wait_running(pod)
    return pod


def said(node: Node, text: str) -> int:
    return node.driver.log.read_text().count(text)


def test_a_pod_removed_while_the_node_was_down_holds_nothing_for_ever(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node(settings=SETTINGS)
    gone, living = (pod_of(node, tmp_path, name, seed) for seed, name in enumerate(("gone", "living")))
    node.kubelet.stop()
    node.driver.kill()
    # The node was down: every mount is gone, and somebody removed one pod's directory before it came up.
    mounts.detach_below(node.driver.kubelet_root)
    for path in node.leases():
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "boot_id": "another boot"}))
    shutil.rmtree(node.driver.kubelet_root / "pods" / gone.uid)
    del node.kubelet.pods[gone.uid]
    node.registry.forget()
    # Nothing ends as long as the kubelet's file system isn't there.
    pods, away = node.driver.kubelet_root / "pods", node.driver.kubelet_root / "away"
    pods.rename(away)
    pods.mkdir()
    node.driver.start()
    node.kubelet.wait_until(lambda: said(node, "their leases stay") > 0, "the driver to say what it misses", TIMEOUT)
    assert len(node.leases()) == 2
    node.driver.kill()
    pods.rmdir()
    away.rename(pods)

    node.driver.start()
    node.kubelet.start()
    node.kubelet.wait_until(lambda: len(node.leases()) == 1, "the vanished pod's lease to end", TIMEOUT)
    farewell = "a pod vanished without an unpublish"
    node.kubelet.wait_until(lambda: said(node, farewell) > 0, "the driver to say so", TIMEOUT)
    node.kubelet.wait_running(living, TIMEOUT)
    assert contents(node.mount(living)) == contents(tmp_path / "living")
    assert node.registry.requests() == []
    collected = json.loads(node.driver.run("gc", "--all", "--json").stdout)["result"]
    assert [name.split("/")[-1] for name in collected["models"]] == ["gone:v1"]
    assert said(node, farewell) == 1
    assert contents(node.mount(living)) == contents(tmp_path / "living")
