"""Secrets by the kubelet, refusals, and what the pod's events say, word by word."""

from __future__ import annotations

import base64
import json

import pytest

from tests.cluster.api import Object, wait
from tests.cluster.test_volumes import claim, of_claim, sees, storage_class
from tests.cluster.world import WAIT_SECONDS, World

pytestmark = pytest.mark.timeout(600)


def secret(world: World, name: str, password: str, namespace: str = "default") -> Object:
    """As `kubectl create secret docker-registry` makes it."""
    config = {"auths": {world.private.host: {"username": "robot", "password": password}}}
    encoded = base64.b64encode(json.dumps(config).encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": encoded},
    }


def refused(world: World, name: str, namespace: str = "default") -> str:
    """The text of the pod's first failed mount."""

    def look() -> list[str]:
        pod = world.api.get("Pod", name, namespace)
        assert pod is not None
        return [text for text in world.warnings(pod) if text.startswith("FailedMount: ")]

    return wait(f"{name} was refused", look, WAIT_SECONDS)[0]


def sentence(volume: str, code: str, text: str) -> str:
    """What the kubelet makes of an error of ours."""
    return f'FailedMount: MountVolume.SetUp failed for volume "{volume}" : rpc error: code = {code} desc = {text}'


def test_a_secret_of_the_pods_namespace(world: World) -> None:
    model = world.model(private=True)
    world.api.create(secret(world, "right", "right"))
    world.api.create(world.pod("private", {"model": world.inline(model, secret="right")}))
    sees(world, "private", model)
    world.api.delete("Secret", "right")


def test_without_a_secret_the_event_says_so(world: World) -> None:
    model = world.model(private=True)
    world.api.create(world.pod("stranger", model))
    assert refused(world, "stranger") == sentence(
        "model",
        "Unauthenticated",
        f"{model.reference}: not found or no access; check the name, and that the Secret of nodePublishSecretRef has "
        "credentials for this registry that may pull it",
    )


def test_with_a_wrong_secret_the_event_says_so_and_a_corrected_one_helps(world: World) -> None:
    model = world.model(private=True)
    world.api.create(secret(world, "wrong", "wrong"))
    world.api.create(world.pod("mistaken", {"model": world.inline(model, secret="wrong")}))
    said = refused(world, "mistaken")
    assert said.startswith(sentence("model", "PermissionDenied", f"{model.reference}: not found or no access"))
    assert "wrong" not in said.partition("desc = ")[2]
    world.api.patch("Secret", "wrong", {"data": secret(world, "wrong", "right")["data"]})
    sees(world, "mistaken", model)
    world.api.delete("Secret", "wrong")


def test_secrets_by_namespace_from_a_class(world: World) -> None:
    model = world.model(private=True)
    parameters = {
        "csi.storage.k8s.io/node-publish-secret-name": "team",
        "csi.storage.k8s.io/node-publish-secret-namespace": "${pvc.namespace}",
    }
    world.api.create(secret(world, "team", "right"), storage_class("private", model, "Immediate", **parameters))
    world.api.create(claim("private", "private"), world.pod("by-class", {"model": of_claim("private")}))
    sees(world, "by-class", model)
    world.gone("by-class")
    world.api.delete("PersistentVolumeClaim", "private")
    world.api.delete("StorageClass", "private")
    world.api.delete("Secret", "team")


def test_a_model_that_is_not_there(world: World) -> None:
    reference = f"{world.registry.host}/models/none:v1"
    world.api.create(world.pod("absent", {"model": {"csi": inline(reference)}}))
    assert refused(world, "absent").startswith(sentence("model", "NotFound", f"{reference}: not found or no access"))


def test_a_registry_that_no_admin_allowed(world: World) -> None:
    reference = "127.0.0.1:9/models/none:v1"
    world.api.create(world.pod("forbidden", {"model": {"csi": inline(reference)}}))
    said = refused(world, "forbidden")
    assert said == sentence(
        "model",
        "InvalidArgument",
        "registry 127.0.0.1:9 is an address or this host itself; an admin must list it first: "
        "[registries.'127.0.0.1:9']",
    )


def test_a_misspelt_attribute(world: World) -> None:
    csi = inline(f"{world.registry.host}/models/none:v1")
    csi["volumeAttributes"]["modle"] = "x"
    world.api.create(world.pod("misspelt", {"model": {"csi": csi}}))
    said = refused(world, "misspelt")
    assert "code = InvalidArgument desc = " in said
    assert "modle" in said


def inline(reference: str) -> Object:
    return {"driver": "csi.modelmount.io", "readOnly": True, "volumeAttributes": {"model": reference}}
