"""What the driver reads and changes in the cluster: claims that name their model, the startup taint, Secrets of service
accounts.
"""

from __future__ import annotations

import pytest

from tests.cluster.api import Object, wait
from tests.cluster.test_access import refused, secret, sentence
from tests.cluster.test_volumes import claim, of_claim, sees
from tests.cluster.world import DRIVER, NAMESPACE, WAIT_SECONDS, World

pytestmark = pytest.mark.timeout(600)

TAINT = "modelmount.io/driver-not-ready"


def annotated(name: str, reference: str) -> Object:
    made = claim(name, "open")
    made["metadata"]["annotations"] = {"modelmount.io/model": reference}
    return made


def provisioning_failed(world: World, name: str) -> str:
    """The text of the claim's first failed provisioning."""

    def look() -> list[str]:
        found = world.api.get("PersistentVolumeClaim", name)
        assert found is not None
        events = world.api.events(found["metadata"]["uid"])
        return [event["message"] for event in events if event["reason"] == "ProvisioningFailed"]

    return wait(f"claim {name} got no volume", look, WAIT_SECONDS)[0]


def test_a_claim_that_names_its_model_by_annotation(world: World) -> None:
    model = world.model()
    world.api.create(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "open"},
            "provisioner": DRIVER,
            "parameters": {"allowedReferences": f"{world.registry.host}/models/*"},
        }
    )
    world.api.create(annotated("chosen", model.reference), world.pod("chosen", {"model": of_claim("chosen")}))
    sees(world, "chosen", model)

    forbidden = f"{world.private.host}/models/m0:v1"
    world.api.create(annotated("greedy", forbidden))
    assert provisioning_failed(world, "greedy") == (
        f"rpc error: code = PermissionDenied desc = claim default/greedy names '{forbidden}', which its StorageClass "
        "doesn't allow (allowedReferences); ask the cluster's admin"
    )
    world.api.create(claim("undecided", "open"))
    assert provisioning_failed(world, "undecided") == (
        "rpc error: code = FailedPrecondition desc = claim default/undecided names no model: annotate it, for example "
        "`modelmount.io/model: harbor.example.com/llm/llama3-70b:v1`"
    )
    annotation = {"metadata": {"annotations": {"modelmount.io/model": model.reference}}}
    world.api.patch("PersistentVolumeClaim", "undecided", annotation)
    world.api.create(world.pod("undecided", {"model": of_claim("undecided")}))
    sees(world, "undecided", model)
    world.gone("chosen", "undecided")
    for name in ("chosen", "greedy", "undecided"):
        world.api.delete("PersistentVolumeClaim", name)
    wait("the volumes are gone", lambda: not world.api.all("PersistentVolume"), WAIT_SECONDS)
    world.api.delete("StorageClass", "open")


def test_a_startup_taint_goes_once_the_driver_serves(world: World) -> None:
    model = world.model()
    world.api.patch("Node", "node1", {"spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}]}})

    def taints() -> list[str]:
        node = world.api.get("Node", "node1")
        assert node is not None
        return [taint["key"] for taint in node["spec"].get("taints", ())]

    try:
        world.api.create(world.pod("early", model))

        def unschedulable() -> bool:
            pod = world.api.get("Pod", "early")
            conditions = (pod or {}).get("status", {}).get("conditions", ())
            return any(c["type"] == "PodScheduled" and c.get("reason") == "Unschedulable" for c in conditions)

        wait("the pod finds no node", unschedulable, WAIT_SECONDS)
        assert taints() == [TAINT]
        world.helm("upgrade", startupTaint={"enabled": True})
        wait("the taint is gone", lambda: TAINT not in taints(), WAIT_SECONDS)
        sees(world, "early", model)
    finally:
        world.api.patch("Node", "node1", {"spec": {"taints": None}})
        world.gone("early")
        world.helm("upgrade")


def test_image_pull_secrets_of_the_service_account(world: World) -> None:
    model = world.model(private=True)
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere"}}
    world.api.create(other, secret(world, "of-account", "right"), secret(world, "of-account", "right", "elsewhere"))
    for namespace in ("default", "elsewhere"):

        def account(namespace: str = namespace) -> Object | None:
            return world.api.get("ServiceAccount", "default", namespace)

        wait("there is a service account", account, WAIT_SECONDS)
        secrets = {"imagePullSecrets": [{"name": "of-account"}]}
        world.api.patch("ServiceAccount", "default", secrets, namespace)
    world.helm("upgrade", pullSecrets={"enabled": True, "namespaces": ["default"]})
    try:
        world.api.create(world.pod("employed", model))
        sees(world, "employed", model)
        world.api.create(world.pod("stranger", model, namespace="elsewhere"))
        assert refused(world, "stranger", "elsewhere").startswith(
            sentence("model", "Unauthenticated", f"{model.reference}: not found or no access")
        )
        driver = world.driver_pod()["metadata"]["name"]

        def unused() -> list[str]:
            lines = world.api.log(driver, NAMESPACE).splitlines()
            return [line for line in lines if "imagePullSecrets of service accounts are not used" in line]

        (said,) = wait("the driver says so", unused, WAIT_SECONDS)
        assert "elsewhere" in said
    finally:
        world.gone("employed")
        world.gone("stranger", namespace="elsewhere")
        world.helm("upgrade")
        world.api.patch("ServiceAccount", "default", {"imagePullSecrets": None})
        world.api.delete("Secret", "of-account")
        world.api.delete("Namespace", "elsewhere")
