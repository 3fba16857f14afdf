"""What goes on while pods live: registries that are slow or down, a kubelet and a driver that come and go."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from tests.cluster.api import ApiError, wait
from tests.cluster.conftest import Figures
from tests.cluster.test_volumes import sees
from tests.cluster.world import WAIT_SECONDS, World
from tests.e2e.conftest import random_bytes

pytestmark = pytest.mark.timeout(900)

SLOW = 150_000
CONFIG_BYTES = 4096
LARGE_MIB = 2048


def mounted(world: World) -> float:
    """Mounts that this kubelet made; 0 while it doesn't answer."""
    try:
        return world.mount_seconds()[1]
    except ApiError:
        return 0.0


def test_a_pod_deleted_while_its_model_is_pulled(world: World) -> None:
    model = world.model(through=world.slow.host, weights=3_000_000)
    before = world.received()
    with world.slowly(SLOW):
        world.api.create(world.pod("hasty", model))
        wait("the pull has begun", lambda: world.slow.passed >= 500_000, WAIT_SECONDS)
        world.gone("hasty")
        world.settled()
    world.api.create(world.pod("second", model))
    sees(world, "second", model)
    assert world.received() - before <= model.size + CONFIG_BYTES


def test_a_driver_killed_while_pods_run_and_while_it_pulls(world: World, figures: Figures) -> None:
    first, second = world.model(), world.model(through=world.slow.host, weights=3_000_000)
    command = "cd /model; while cat config.json > /dev/null; do echo read; sleep 0.2; done; echo lost"
    world.api.create(world.pod("survivor", first, command=command))
    world.running("survivor")
    earlier = world.received()
    with world.slowly(SLOW):
        world.api.create(world.pod("waiting", second))
        wait("the pull has begun", lambda: world.slow.passed >= 2_000_000, WAIT_SECONDS)
        before, killed = world.driver_process(), world.received() - earlier
        os.kill(before, signal.SIGKILL)
        wait("another driver runs", lambda: world.driver_process() not in {0, before}, WAIT_SECONDS)
    sees(world, "waiting", second)
    lines = world.api.log("survivor").count("\n")
    assert "lost" not in world.printed("survivor", lines + 3)
    world.gone("survivor", "waiting")
    world.settled()
    figures["bytes_again"] = max(0, world.received() + killed - second.size)  # what it had not synced may come again


def test_an_upgrade_while_pods_run(world: World) -> None:
    model = world.model()
    command = "cd /model; while cat config.json > /dev/null; do echo read; sleep 0.2; done; echo lost"
    world.api.create(world.pod("through", model, command=command))
    world.running("through")
    before = world.driver_pod()["metadata"]["name"]
    world.helm("upgrade", node={"podAnnotations": {"restarted": "yes"}})
    wait("the driver's pod is another", lambda: world.driver_pod()["metadata"]["name"] != before, WAIT_SECONDS)
    lines = world.api.log("through").count("\n")
    assert "lost" not in world.printed("through", lines + 3)
    world.api.create(world.pod("after", model))
    sees(world, "after", model)
    world.gone("through", "after")
    world.settled()


def test_a_cache_setting_changes_no_pod(world: World) -> None:
    before = world.driver_pod()["metadata"]["uid"]
    config = world.values()["config"]
    world.helm(
        "upgrade",
        config={**config, "cache": {"grace_seconds": 0, "max_bytes": 50_000_000_000}},
        node={"podAnnotations": {"restarted": "yes"}},
    )
    assert world.driver_pod()["metadata"]["uid"] == before


def test_the_kubelet_restarts_while_the_registry_is_down(world: World, figures: Figures) -> None:
    models = [world.model() for _ in range(2)]
    names = [f"steady-{number}" for number in range(6)]
    for name, model in zip(names, itertools.cycle(models), strict=False):
        world.api.create(world.pod(name, model))
    started = {name: world.running(name)["status"]["containerStatuses"][0]["containerID"] for name in names}
    world.registry.stop()
    try:
        count = world.mount_seconds()[1]
        world.cluster.node["kubelet"].restart()
        wait("the kubelet mounted everything again", lambda: mounted(world) >= len(names), WAIT_SECONDS)
        figures["mounts_before"], figures["mounts_again"] = count, world.mount_seconds()[1]
        for name in names:
            pod = world.running(name)
            assert pod["status"]["containerStatuses"][0]["containerID"] == started[name], "the container was replaced"
        world.gone(*names)
        world.settled()
    finally:
        world.registry.start()


def test_two_gigabytes_in_half_a_gigabyte_of_memory(world: World, figures: Figures) -> None:
    """A pull's page cache is charged to the driver. With a limit it is written back earlier; nobody gets killed."""
    source = world.directory / "large"
    source.mkdir()
    block = random_bytes(1 << 20, seed=99)
    with (source / "model.safetensors").open("wb") as out:
        for number in range(LARGE_MIB):
            out.write(number.to_bytes(8, "little") + block[8:])
    model = world.push(source)
    (source / "model.safetensors").unlink()
    resources = {"requests": {"memory": "128Mi"}, "limits": {"memory": "512Mi"}}
    world.helm("upgrade", node={"resources": resources})
    try:
        world.api.create(world.pod("large", model))
        sees(world, "large", model)
        (status,) = world.driver_pod()["status"]["containerStatuses"]
        assert status["restartCount"] == 0
        assert world.received() <= model.size + CONFIG_BYTES
        figures["bytes"], figures["bytes_sent_unread"] = model.size, world.sent_unread(model)
    finally:
        world.gone("large")
        world.settled()
        world.helm("upgrade")
