"""Manifests: valid by the Kubernetes schemas, and right in the fields where a wrong value shows only on a cluster."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

import modelmount
from modelmount import config

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
MANIFESTS = DEPLOY / "manifests"
FILES = sorted([*MANIFESTS.glob("*.yaml"), *(DEPLOY / "examples").glob("*.yaml")])
FIRST_VERSION = (1, 25)
"""The oldest Kubernetes that has inline CSI volumes for good."""

Object = dict[str, Any]


def objects(file: Path) -> list[Object]:
    return [o for o in yaml.safe_load_all(file.read_text()) if o is not None]


def one(name: str, kind: str) -> Object:
    (found,) = [o for o in objects(MANIFESTS / name) if o["kind"] == kind]
    return found


def pod_specs() -> Iterator[tuple[str, Object]]:
    for file, o in ((f, o) for f in FILES for o in objects(f)):
        if o["kind"] == "Pod":
            yield file.name, o["spec"]
        elif o["kind"] in {"DaemonSet", "Deployment"}:
            yield file.name, o["spec"]["template"]["spec"]


def schema_versions() -> list[str]:
    bundled = [v for v in dict.fromkeys(all_versions()) if tuple(int(p) for p in v.split(".")[:2]) >= FIRST_VERSION]
    return [bundled[0], bundled[len(bundled) // 2], bundled[-1]]


def container(spec: Object, name: str = "modelmount") -> Object:
    (found,) = [c for c in spec["containers"] if c["name"] == name]
    return dict(found)


def environment(spec: Object) -> dict[str, str]:
    return {e["name"]: e.get("value", "some-node") for e in container(spec)["env"]}


@pytest.fixture(params=["daemonset.yaml", "daemonset-sidecars.yaml"])
def node(request: pytest.FixtureRequest) -> Object:
    return one(request.param, "DaemonSet")


@pytest.mark.parametrize("version", schema_versions())
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_each_object_is_valid_and_has_no_unknown_field(file: Path, version: str) -> None:
    if file.name == "kustomization.yaml":
        return  # read by kubectl, never sent to a cluster
    assert objects(file)
    for o in objects(file):
        kubernetes_validate.validate(o, version, strict=True)


def test_the_schemas_would_notice_a_misspelt_field() -> None:
    wrong = one("csidriver.yaml", "CSIDriver")
    wrong["spec"]["fsGroupPolicies"] = "None"
    with pytest.raises(kubernetes_validate.ValidationError, match="fsGroupPolicies"):
        kubernetes_validate.validate(wrong, all_versions()[-1], strict=True)


def test_the_kustomization_names_every_manifest_that_is_no_choice_or_example() -> None:
    (kustomization,) = objects(MANIFESTS / "kustomization.yaml")
    alternatives = {"kustomization.yaml", "daemonset-sidecars.yaml", "storageclass.yaml"}
    assert set(kustomization["resources"]) == {f.name for f in MANIFESTS.glob("*.yaml")} - alternatives
    (image,) = kustomization["images"]
    assert image["newTag"] == modelmount.__version__


def test_no_two_objects_of_one_installation_have_the_same_name() -> None:
    (kustomization,) = objects(MANIFESTS / "kustomization.yaml")
    names = [
        (o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"])
        for file in kustomization["resources"]
        for o in objects(MANIFESTS / file)
    ]
    assert len(names) == len(set(names))


def test_n11_the_driver_object_says_what_the_driver_does() -> None:
    driver = one("csidriver.yaml", "CSIDriver")
    assert driver["metadata"]["name"] == config.Settings().driver_name
    assert driver["metadata"]["labels"]["security.openshift.io/csi-ephemeral-volume-profile"] == "restricted"
    assert driver["spec"] == {
        "attachRequired": False,
        "podInfoOnMount": True,
        "volumeLifecycleModes": ["Ephemeral", "Persistent"],
        "fsGroupPolicy": "None",
        "requiresRepublish": False,
        "storageCapacity": False,
        "seLinuxMount": False,
    }


def test_the_namespace_allows_privileged_pods() -> None:
    labels = one("namespace.yaml", "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"


def test_everything_is_in_that_namespace() -> None:
    cluster_wide = {"Namespace", "CSIDriver", "ClusterRole", "ClusterRoleBinding", "StorageClass", "Kustomization"}
    for o in itertools.chain.from_iterable(objects(f) for f in MANIFESTS.glob("*.yaml")):
        if o["kind"] not in cluster_wide:
            assert o["metadata"]["namespace"] == "modelmount-system", o["metadata"]["name"]
        for subject in o.get("subjects", ()):
            assert subject["namespace"] == "modelmount-system"


def test_never_two_node_drivers_at_once(node: Object) -> None:
    assert node["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    assert node["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0


def test_the_node_pod_is_on_every_linux_node_and_is_the_last_to_go(node: Object) -> None:
    spec = node["spec"]["template"]["spec"]
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_only_the_driver_is_privileged_and_it_gets_nothing_else_of_the_host(node: Object) -> None:
    spec = node["spec"]["template"]["spec"]
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        assert not spec.get(name)
    assert spec["automountServiceAccountToken"] is True, "for events"
    driver = container(spec)
    assert driver["securityContext"] == {"privileged": True, "readOnlyRootFilesystem": True}
    for sidecar in (c for c in spec["containers"] if c["name"] != "modelmount"):
        context = sidecar["securityContext"]
        assert not context.get("privileged")
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not any(m.get("mountPropagation") for m in sidecar["volumeMounts"])
    allowed = ("/var/lib/kubelet/", "/var/lib/modelmount")
    assert all(v["hostPath"]["path"].startswith(allowed) for v in spec["volumes"] if "hostPath" in v)


def test_mounts_reach_other_pods_and_the_store_is_mounted_once(node: Object) -> None:
    spec = node["spec"]["template"]["spec"]
    paths = {v["name"]: v["hostPath"]["path"] for v in spec["volumes"] if "hostPath" in v}
    driver_mounts = {m["name"]: m for m in container(spec)["volumeMounts"]}
    settings = config.Settings()
    assert driver_mounts["pods"]["mountPropagation"] == "Bidirectional"
    assert [n for n, m in driver_mounts.items() if m.get("mountPropagation")] == ["pods"]
    assert paths["pods"] == driver_mounts["pods"]["mountPath"] == str(settings.publish_roots[0])
    every_mount = [m["name"] for c in spec["containers"] for m in c["volumeMounts"]]
    assert every_mount.count("store") == 1
    assert paths["store"] == driver_mounts["store"]["mountPath"] == settings.root
    assert driver_mounts["store"].get("subPath") is None
    assert paths["plugin"] == driver_mounts["plugin"]["mountPath"], "the kubelet's path of the socket is ours too"


def test_the_page_cache_of_a_pull_has_no_memory_limit(node: Object) -> None:
    resources = container(node["spec"]["template"]["spec"])["resources"]
    assert "memory" in resources["requests"]
    assert "limits" not in resources


def test_the_driver_registers_itself_unless_a_registrar_does(node: Object) -> None:
    spec = node["spec"]["template"]["spec"]
    settings = config.load(None, environment(spec))
    registrar = [c for c in spec["containers"] if c["name"] == "node-driver-registrar"]
    if registrar:
        assert settings.plugins_registry is None
        assert f"--kubelet-registration-path={settings.socket_path}" in registrar[0]["args"]
    else:
        mounted = {m["mountPath"] for m in container(spec)["volumeMounts"]}
        assert str(settings.plugins_registry) in mounted


def test_the_health_check_has_a_port_that_somebody_serves(node: Object) -> None:
    spec = node["spec"]["template"]["spec"]
    driver = container(spec)
    (port,) = driver["ports"]
    address = config.load(None, environment(spec)).metrics_address
    assert address.endswith(f":{port['containerPort']}")
    prober = [c for c in spec["containers"] if c["name"] == "livenessprobe"]
    probed = driver["livenessProbe"]["httpGet"]
    assert probed["path"] == "/healthz"
    if prober:
        assert f"--http-endpoint=:{probed['port']}" in prober[0]["args"]
        assert probed["port"] != port["containerPort"]
    else:
        assert probed["port"] == port["name"]


@pytest.mark.parametrize("file", ["daemonset.yaml", "daemonset-sidecars.yaml", "controller.yaml"])
def test_the_drivers_environment_and_file_are_settings_it_knows(file: str, tmp_path: Path) -> None:
    (workload,) = [o for o in objects(MANIFESTS / file) if o["kind"] in {"DaemonSet", "Deployment"}]
    spec = workload["spec"]["template"]["spec"]
    assert spec["enableServiceLinks"] is False, "service links would add MODELMOUNT_* variables"
    driver = container(spec)
    (name,) = [v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v]
    configuration = one("config.yaml", "ConfigMap")
    assert name == configuration["metadata"]["name"]
    (mount,) = [m["mountPath"] for m in driver["volumeMounts"] if m["name"] == "config"]
    assert driver["args"] == ["serve", "--config", f"{mount}/config.toml"]
    (tmp_path / "config.toml").write_text(configuration["data"]["config.toml"])
    settings = config.load(str(tmp_path / "config.toml"), environment(spec))
    assert settings.mode == ("controller" if file == "controller.yaml" else "node")


def test_the_commented_settings_are_settings_too(tmp_path: Path) -> None:
    text = one("config.yaml", "ConfigMap")["data"]["config.toml"]
    lines = [line.removeprefix("# ") for line in text.splitlines() if "=" in line or line.startswith("# [")]
    assert tomllib.loads("\n".join(lines))["registries"]
    (tmp_path / "config.toml").write_text("\n".join(lines))
    config.load(str(tmp_path / "config.toml"), {})


def test_the_controller_is_unprivileged() -> None:
    spec = one("controller.yaml", "Deployment")["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in spec["containers"]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not any("hostPath" in v for v in spec["volumes"])


def test_the_node_account_may_write_events_and_the_provisioner_sees_no_secrets() -> None:
    rights = objects(MANIFESTS / "rbac.yaml")
    of_nodes = [
        o["roleRef"]["name"] for o in rights if {"modelmount-node"} == {s["name"] for s in o.get("subjects", ())}
    ]
    assert of_nodes == ["modelmount-events"]
    (events,) = [o for o in rights if o["kind"] == "ClusterRole" and o["metadata"]["name"] == "modelmount-events"]
    assert events["rules"] == [{"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}]
    for role in (o for o in rights if o["kind"] in {"Role", "ClusterRole"}):
        for rule in role["rules"]:
            assert "secrets" not in rule["resources"]
            assert "*" not in [*rule["resources"], *rule["verbs"], *rule["apiGroups"]]


def test_claims_are_provisioned_by_the_driver_on_any_node() -> None:
    storage_class = one("storageclass.yaml", "StorageClass")
    assert storage_class["provisioner"] == config.Settings().driver_name
    assert storage_class["volumeBindingMode"] == "Immediate"
    assert storage_class["allowVolumeExpansion"] is False
    assert set(storage_class["parameters"]) == {"model"}


def test_images_are_named_by_version() -> None:
    for file, spec in pod_specs():
        for each in spec["containers"]:
            tag = each["image"].partition(":")[2]
            assert each["image"] == "modelmount" or (tag and tag != "latest"), f"{file}: {each['image']}"


@pytest.mark.parametrize("file", sorted((DEPLOY / "examples").glob("*.yaml")), ids=lambda f: f.name)
def test_examples_ask_for_read_only_everywhere(file: Path) -> None:
    specs = [spec for name, spec in pod_specs() if name == file.name]
    assert specs
    for spec in specs:
        (volume,) = [v for v in spec["volumes"] if v["name"] == "model"]
        source = volume.get("csi") or volume["persistentVolumeClaim"]
        assert source["readOnly"] is True
        for each in spec["containers"]:
            (mount,) = [m for m in each["volumeMounts"] if m["name"] == "model"]
            assert mount["readOnly"] is True
    for claim in (o for o in objects(file) if o["kind"] in {"PersistentVolume", "PersistentVolumeClaim"}):
        assert claim["spec"]["accessModes"] == ["ReadOnlyMany"]


def test_example_claims_meet_their_class_and_their_volume() -> None:
    storage_class = one("storageclass.yaml", "StorageClass")["metadata"]["name"]
    (claim,) = [o for o in objects(DEPLOY / "examples/vllm-pvc.yaml") if o["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["storageClassName"] == storage_class
    by_kind = {o["kind"]: o for o in objects(DEPLOY / "examples/vllm-static-pv.yaml")}
    volume, claim = by_kind["PersistentVolume"], by_kind["PersistentVolumeClaim"]
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert volume["spec"]["claimRef"] == {k: claim["metadata"][k] for k in ("namespace", "name")}
    assert volume["spec"]["csi"]["driver"] == config.Settings().driver_name


@pytest.mark.parametrize("file", sorted((DEPLOY / "examples").glob("*.yaml")), ids=lambda f: f.name)
def test_an_example_brings_the_secrets_and_namespaces_that_it_names(file: Path) -> None:
    brought = {(o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]) for o in objects(file)}
    for o in objects(file):
        space = o["metadata"].get("namespace", "")
        assert not space or ("Namespace", "", space) in brought
        sources = [o["spec"]["csi"]] if o["kind"] == "PersistentVolume" else []
        sources += [v["csi"] for v in o.get("spec", {}).get("volumes", []) if "csi" in v]
        for secret in (s["nodePublishSecretRef"] for s in sources if "nodePublishSecretRef" in s):
            assert ("Secret", secret.get("namespace", space), secret["name"]) in brought
