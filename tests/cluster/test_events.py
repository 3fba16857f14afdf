"""What the driver itself tells pods, word by word, and what becomes of it without the right to."""

from __future__ import annotations

import re

import pytest

from modelmount.pull.progress import human_bytes
from tests.cluster.api import Object, wait
from tests.cluster.test_access import refused
from tests.cluster.test_volumes import sees
from tests.cluster.world import DRIVER, NAMESPACE, WAIT_SECONDS, World

pytestmark = pytest.mark.timeout(600)

POLICY = """
[default]
[[rule]]
name = "no strangers"
models = ["*/models/*"]
namespaces = ["default"]
allow = false
"""


def ours(world: World, name: str) -> list[Object]:
    """The driver's own events of a pod."""
    pod = world.api.get("Pod", name)
    assert pod is not None
    return [e for e in world.api.events(pod["metadata"]["uid"]) if e.get("source", {}).get("component") == DRIVER]


def told(world: World, name: str, count: int) -> list[Object]:
    """Those, once there are so many."""
    wait(f"{name} is told {count} things", lambda: len(ours(world, name)) >= count, WAIT_SECONDS)
    return sorted(ours(world, name), key=lambda event: int(event["metadata"]["resourceVersion"]))


def test_events_of_a_pull_and_of_a_model_that_is_here(world: World) -> None:
    model = world.model()
    world.api.create(world.pod("first", model))
    sees(world, "first", model)
    world.api.create(world.pod("second", model))
    sees(world, "second", model)
    pulling, pulled = told(world, "first", 2)
    called = rf"{re.escape(model.reference)} \({model.digest}\)"
    assert (pulling["type"], pulling["reason"], pulling["count"]) == ("Normal", "ModelPulling", 1)
    assert re.fullmatch(f"pulling {called}", pulling["message"])
    assert (pulled["type"], pulled["reason"], pulled["count"]) == ("Normal", "ModelPulled", 1)
    size = re.escape(human_bytes(model.shown))
    assert re.fullmatch(rf"pulled {called}: {size} in \d+ s", pulled["message"])
    (cached,) = told(world, "second", 1)
    assert (cached["type"], cached["reason"], cached["count"]) == ("Normal", "ModelCached", 1)
    assert re.fullmatch(f"{called} is on this node already", cached["message"])
    assert {event["source"]["host"] for event in (pulling, pulled, cached)} == {"node1"}
    described = world.cluster.run("kubectl", "describe", "pod", "first")
    assert re.search(rf"Normal +ModelPulled .* {re.escape(DRIVER)} +pulled {called}: ", described)
    world.gone("first", "second")


def test_a_refusal_names_the_rule_and_is_counted(world: World) -> None:
    model = world.model()
    policy = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "policy", "namespace": NAMESPACE}}
    world.api.create({**policy, "data": {"policy.toml": POLICY}})
    config = world.values()["config"]
    world.helm(
        "upgrade",
        config={**config, "policy_file": "/etc/policy/policy.toml"},
        node={
            "extraVolumes": [{"name": "policy", "configMap": {"name": "policy"}}],
            "extraVolumeMounts": [{"name": "policy", "mountPath": "/etc/policy"}],
        },
    )
    try:
        world.api.create(world.pod("ruled", model))
        said = refused(world, "ruled")
        wait("it is counted", lambda: any(event["count"] >= 2 for event in ours(world, "ruled")), WAIT_SECONDS)
        (event,) = ours(world, "ruled")
        assert (event["type"], event["reason"]) == ("Warning", "ModelRefused")
        assert event["message"] == (
            f"rule 'no strangers' of this node's policy forbids it: {model.reference.rpartition(':')[0]} may not be "
            "mounted in this namespace; ask the cluster's admin"
        )
        assert said.endswith(event["message"])
        world.gone("ruled")
    finally:
        world.helm("upgrade")
        world.api.delete("ConfigMap", "policy", NAMESPACE)


def test_without_the_right_it_works_and_says_once_what_is_missing(world: World) -> None:
    world.cluster.run("kubectl", "delete", "clusterrolebinding", "modelmount-events")
    first, second = world.model(), world.model()
    for name, model in (("mute", first), ("dumb", second)):
        world.api.create(world.pod(name, model))
        sees(world, name, model)
    pod = world.driver_pod()["metadata"]["name"]

    def missing() -> list[str]:
        return [line for line in world.api.log(pod, NAMESPACE).splitlines() if "pods are not told" in line]

    wait("it says so", missing, WAIT_SECONDS)
    assert len(missing()) == 1
    assert 'cannot create resource \\"events\\"' in missing()[0]
    assert ours(world, "mute") == ours(world, "dumb") == []
    world.gone("mute", "dumb")
    world.helm("upgrade")
    world.api.create(world.pod("heard", first))
    assert told(world, "heard", 1)[0]["reason"] == "ModelCached"


def test_without_events_the_driver_has_no_token(world: World) -> None:
    world.helm("upgrade", events={"enabled": False})
    try:
        model = world.model()
        world.api.create(world.pod("untold", model))
        sees(world, "untold", model)
        mounted = [each["mountPath"] for each in world.driver_pod()["spec"]["containers"][0]["volumeMounts"]]
        assert not any("serviceaccount" in path for path in mounted)
        assert ours(world, "untold") == []
        world.gone("untold")
    finally:
        world.helm("upgrade")
