"""Every kind of volume that Kubernetes has for a CSI driver, with the real parts around it."""

from __future__ import annotations

import pytest

from tests.cluster.api import Object, wait
from tests.cluster.conftest import Figures
from tests.cluster.world import DRIVER, WAIT_SECONDS, Model, World

pytestmark = pytest.mark.timeout(600)

CLAIM_SIZE = {"requests": {"storage": "1Gi"}}


def claim(name: str, storage_class: str, **spec: object) -> Object:
    spec = {"accessModes": ["ReadOnlyMany"], "storageClassName": storage_class, "resources": CLAIM_SIZE, **spec}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def storage_class(name: str, model: Model, mode: str, **parameters: str) -> Object:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": DRIVER,
        "parameters": {"model": model.reference, **parameters},
        "volumeBindingMode": mode,
    }


def of_claim(name: str) -> Object:
    return {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}


def sees(world: World, name: str, model: Model, namespace: str = "default") -> None:
    """The pod runs and read exactly this model."""
    world.running(name, namespace)
    assert world.printed(name, len(model.sums), namespace) == model.listing()


def test_an_inline_volume(world: World) -> None:
    model = world.model()
    world.api.create(world.pod("inline", model))
    sees(world, "inline", model)
    pod = world.running("inline")
    assert world.warnings(pod) == []
    reasons = [e["reason"] for e in world.api.events(pod["metadata"]["uid"])]
    assert [r for r in reasons if not r.startswith("Model")] == ["Scheduled", "Pulled", "Created", "Started"]
    world.gone("inline")
    world.settled()


def test_five_pods_of_a_deployment_and_one_download(world: World) -> None:
    model = world.model()
    template = world.pod("", model)
    labels = {"app": "five"}
    spec = {
        "replicas": 5,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": template["spec"]},
    }
    world.api.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "five"}, "spec": spec})

    def ready() -> bool:
        deployment = world.api.get("Deployment", "five")
        return deployment is not None and deployment["status"].get("readyReplicas") == 5

    wait("five replicas are ready", ready, WAIT_SECONDS)
    names = [pod["metadata"]["name"] for pod in world.api.all("Pod", app="five")]
    assert len(names) == 5
    for name in names:
        assert world.printed(name, len(model.sums)) == model.listing()
    assert world.fetched(model) == dict.fromkeys(model.blobs, 1)
    world.api.delete("Deployment", "five")
    wait("no replica is left", lambda: not world.api.all("Pod", app="five"), WAIT_SECONDS)
    world.settled()


@pytest.mark.parametrize("mode", ["Immediate", "WaitForFirstConsumer"])
def test_a_claim_of_a_storage_class(world: World, mode: str) -> None:
    model = world.model()
    name = mode.lower()
    world.api.create(storage_class(name, model, mode), claim(name, name))
    for number in range(2):  # ReadOnlyMany
        world.api.create(world.pod(f"{name}-{number}", {"model": of_claim(name)}))
    for number in range(2):
        sees(world, f"{name}-{number}", model)
    bound = world.api.get("PersistentVolumeClaim", name)
    assert bound is not None
    volume = bound["spec"]["volumeName"]
    world.gone(*(f"{name}-{number}" for number in range(2)))
    world.api.delete("PersistentVolumeClaim", name)
    wait("the volume is gone", lambda: world.api.get("PersistentVolume", volume) is None, WAIT_SECONDS)
    world.api.delete("StorageClass", name)


def test_a_volume_made_by_hand(world: World) -> None:
    model = world.model()
    csi = {
        "driver": DRIVER,
        "volumeHandle": "by-hand",
        "readOnly": True,
        "volumeAttributes": {"model": model.reference},
    }
    spec = {
        "accessModes": ["ReadOnlyMany"],
        "capacity": CLAIM_SIZE["requests"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "",
        "claimRef": {"namespace": "default", "name": "by-hand"},
        "csi": csi,
    }
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "by-hand"}, "spec": spec}
    world.api.create(volume, claim("by-hand", "", volumeName="by-hand"))
    world.api.create(world.pod("by-hand", {"model": of_claim("by-hand")}))
    sees(world, "by-hand", model)
    world.gone("by-hand")
    world.api.delete("PersistentVolumeClaim", "by-hand")
    world.api.delete("PersistentVolume", "by-hand")


def test_a_generic_ephemeral_volume(world: World) -> None:
    model = world.model()
    world.api.create(storage_class("ephemeral", model, "WaitForFirstConsumer"))
    template = {"spec": claim("", "ephemeral")["spec"]}
    world.api.create(world.pod("ephemeral", {"model": {"ephemeral": {"volumeClaimTemplate": template}}}))
    sees(world, "ephemeral", model)
    world.gone("ephemeral")
    wait("its claim is gone", lambda: not world.api.all("PersistentVolumeClaim"), WAIT_SECONDS)
    world.api.delete("StorageClass", "ephemeral")


def test_a_part_of_a_volume_by_sub_path(world: World) -> None:
    model = world.model()
    pod = world.pod("part", model)
    pod["spec"]["containers"][0]["volumeMounts"][0]["subPath"] = "1_Pooling"
    world.api.create(pod)
    world.running("part")
    inside = {name.partition("/")[2]: value for name, value in model.sums.items() if name.startswith("1_Pooling/")}
    assert world.printed("part", 1) == "".join(f"{value}  /model/{name}\n" for name, value in inside.items())


def test_a_pod_can_write_to_nothing(world: World) -> None:
    model = world.model()
    command = (
        "touch /model/new && echo wrote; rm /model/config.json && echo removed; echo x >> /model/config.json && "
        "echo appended; echo done; trap 'exit 0' TERM; while true; do sleep 0.2; done"
    )
    pod = world.pod("writer", model, command=command)
    pod["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = False
    world.api.create(pod)
    world.running("writer")
    said = world.printed("writer", 4)
    assert said.count("Read-only file system") == 3
    assert "done\n" in said, "two streams, in any order"


def test_a_warm_mount_by_the_kubelets_own_clock(world: World, figures: Figures) -> None:
    model = world.model()
    taken = []
    for number in range(12):
        before = world.mount_seconds()
        world.api.create(world.pod(f"warm-{number}", model))
        world.running(f"warm-{number}")
        seconds, count = (after - earlier for after, earlier in zip(world.mount_seconds(), before, strict=True))
        assert count == 1
        if number >= 2:
            taken.append(seconds * 1000)
    figures.mounts(taken)
    world.gone(*(f"warm-{number}" for number in range(12)))
