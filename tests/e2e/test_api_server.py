"""A driver with an account at an API server: events, the startup taint, the service account's Secrets. What a real one
says to the same requests is shown by tests/cluster.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Node, contents, write_model
from tests.fakes import push
from tests.fakes.kube import ApiServer
from tests.fakes.registry import Registry
from tests.faults.scene import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.registry]

TAINT = "modelmount.io/driver-not-ready"
PASSWORD = "right-password"
NODE = "/api/v1/nodes/node-1"


def populated(server: ApiServer, registry: Registry) -> None:
    """A node with the taint, and a service account that opens the registry."""
    auths = {"auths": {registry.host: {"username": "robot", "password": PASSWORD}}}
    encoded = base64.b64encode(json.dumps(auths).encode()).decode()
    drivers = [{"name": "csi.modelmount.io", "nodeID": "node-1"}]
    server.objects |= {
        NODE: {"metadata": {"name": "node-1"}, "spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}]}},
        "/apis/storage.k8s.io/v1/csinodes/node-1": {"metadata": {"name": "node-1"}, "spec": {"drivers": drivers}},
        "/api/v1/namespaces/default/serviceaccounts/default": {
            "metadata": {"name": "default"},
            "imagePullSecrets": [{"name": "images"}],
        },
        "/api/v1/namespaces/default/secrets/images": {
            "metadata": {"name": "images"},
            "data": {".dockerconfigjson": encoded},
        },
    }


def test_what_a_driver_does_with_an_account_and_that_it_does_without(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    files = write_model(tmp_path / "model")
    with (
        Registry(tmp_path / "private", users={"robot": PASSWORD}) as registry,
        ApiServer(tmp_path / "account") as server,
    ):
        populated(server, registry)
        login = push.basic("robot", PASSWORD)
        pusher = push.Pusher(registry.host, registry.connection, authorization=login)
        pushed = pusher.artifact("llm/small", "v1", push.modelpack(files))
        kubernetes = {"startup_taint": TAINT, "pull_secrets": True, "account_dir": str(server.directory)}
        settings = {"kubernetes": kubernetes, "node_id": "node-1", "auth": {"verification": "record"}}
        node = make_node(registry=registry, settings=settings, environment=server.environment)
        wait_for(lambda: server.objects[NODE]["spec"]["taints"] == [], "the taint to go")
        pod = node.pod("first", pushed.reference)
        node.kubelet.wait_running(pod)
        assert contents(node.mount(pod)) == contents(files)
        wait_for(lambda: len(server.events) == 2, "two events")
        assert [event["reason"] for event in server.events] == ["ModelPulling", "ModelPulled"]
        assert {event["involvedObject"]["uid"] for event in server.events} == {pod.uid}
        written = json.dumps(server.events) + node.driver.log.read_text()
        assert PASSWORD not in written
        assert "first-token" not in written

        with server.silent():  # nobody waits for events
            node.driver.stop()
            node.driver.settings["kubernetes"] = {**kubernetes, "pull_secrets": False}
            node.driver.start()
            again = node.pod("second", pushed.reference)
            node.kubelet.wait_event("FailedMount", "not found or no access", pod=again)
            node.kubelet.delete(again)
            node.kubelet.delete(pod)
            node.kubelet.wait_gone(pod)
