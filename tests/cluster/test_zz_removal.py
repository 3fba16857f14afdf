"""The last scenario: the chart goes, and nothing of it stays but the models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.api import wait
from tests.cluster.world import DRIVER, NAMESPACE, STORE, WAIT_SECONDS, World

pytestmark = pytest.mark.timeout(600)


def test_uninstalling_leaves_the_cluster_clean(world: World) -> None:
    world.cluster.run("helm", "uninstall", "modelmount", "--namespace", NAMESPACE, "--wait", "--timeout", "4m")
    wait("no driver pod is left", lambda: not world.api.all("Pod", NAMESPACE), WAIT_SECONDS)
    wait("the kubelet has forgotten the driver", lambda: not world.registered(), WAIT_SECONDS)
    assert world.api.get("CSIDriver", DRIVER) is None
    named = world.cluster.run("kubectl", "get", "clusterroles,clusterrolebindings,storageclasses", "-o", "name")
    assert "modelmount" not in named
    left = world.cluster.run(
        "kubectl", "-n", NAMESPACE, "get", "all,configmaps,secrets,serviceaccounts,roles", "-o", "name"
    )
    assert "modelmount" not in left
    assert not list(Path("/var/lib/kubelet/plugins_registry").iterdir())
    assert world.left() == []
    assert any((STORE / "blobs/sha256").iterdir()), "models stay on the node"
    world.helm("install")
