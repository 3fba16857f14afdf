"""The chart, rendered by the real helm: valid by the Kubernetes schemas, the same as deploy/manifests, and with a
schema of its values that refuses what would go wrong later.
"""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml
from kubernetes_validate.utils import all_versions

import modelmount
from modelmount import config
from modelmount.policy import rules as policies
from scripts import manifests

Object = dict[str, Any]

POLICY = """[default]
[[rule]]
name = "production"
models = ["harbor.example.com/models/prod/*"]
[[rule.signatures]]
keys = ["/etc/modelmount/policy/prod.pub"]
"""
PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEicGhLXBXvm0B2rmc+1EuMu71rIk0
HDgQDs0pqEbEuRLhXHX5LSGslm4XMSoKq4/QrVv3Gf8RnMW2jLVlCg4KBg==
-----END PUBLIC KEY-----
"""
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
EVERYTHING: Object = {
    "name": "models",
    "driverName": "models.example.com",
    "labels": {"team": "platform"},
    "image": {
        "repository": "registry.internal:5000/modelmount",
        "digest": f"sha256:{'a' * 64}",
        "pullPolicy": "Always",
    },
    "imagePullSecrets": [{"name": "image-registry"}],
    "kubeletRoot": "/var/lib/k0s/kubelet",
    "store": {"path": "/data/models"},
    "config": {
        "allowed_registries": ["registry.internal:5000", "*.example.com"],
        "registries": {"registry.internal:5000": {"ca_file": "/etc/modelmount/ca/internal.pem", "connections": 4}},
        "auth": {"verification": "never"},
        "cache": {"max_bytes": 500_000_000_000, "share": 0.5, "high_watermark": 75, "pins": ['a"b.example.com/x:v1']},
        "pull": {"idle_seconds": 90},
    },
    "caBundles": {"internal.pem": PEM},
    "mirrors": {"registry.internal:5000": '[host."https://mirror.internal:5000"]\n  capabilities = ["pull"]\n'},
    "policy": {"policy.toml": POLICY, "prod.pub": PUBLIC_KEY},
    "registrySecret": "registry",
    "node": {
        "nodeSelector": {"kubernetes.io/os": "linux", "models": "yes"},
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
                }
            }
        },
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "podLabels": {"a": "b"},
        "podAnnotations": {"c": "d"},
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "extraVolumes": [{"name": "trust", "configMap": {"name": "trust"}}],
        "extraVolumeMounts": [{"name": "trust", "mountPath": "/etc/trust"}],
    },
    "controller": {"replicas": 2, "tolerations": [{"operator": "Exists"}], "provisioner": {"extraArgs": ["--v=5"]}},
    "storageClasses": [
        {"name": "one", "parameters": {"model": "registry.internal:5000/a:v1"}},
        {
            "name": "two",
            "parameters": {"model": "registry.internal:5000/b:v1"},
            "volumeBindingMode": "WaitForFirstConsumer",
        },
    ],
    "startupTaint": {"enabled": True},
    "pullSecrets": {"enabled": True, "namespaces": ["team-a", "team-b"]},
    "openshift": {"privilegedSCC": True},
    "csiDriver": {"tokenRequests": [{"audience": "models.example.com"}], "tokensInSecrets": True},
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
    },
    "networkPolicy": {"enabled": True, "scrapers": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "namespace": {"create": True},
}
SIDECARS: Object = {
    **EVERYTHING,
    "sidecars": {"enabled": True},
    "mirrors": {},
    "nodeMirrors": "/etc/containerd/certs.d",
}
SMALL: Object = {"controller": {"enabled": False}, "image": {"tag": "v1"}}


def rendered(values: Object, directory: Path) -> list[Object]:
    """The objects of an installation with these values."""
    file = directory / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return [o for o in yaml.safe_load_all(manifests.render("--values", str(file))) if o is not None]


def one(objects: list[Object], kind: str) -> Object:
    (found,) = [o for o in objects if o["kind"] == kind]
    return found


def pod(workload: Object) -> Object:
    return dict(workload["spec"]["template"]["spec"])


def driver(workload: Object) -> Object:
    (found,) = [c for c in pod(workload)["containers"] if c["name"] == "modelmount"]
    return dict(found)


@pytest.mark.parametrize(
    "values", [{}, EVERYTHING, SIDECARS, SMALL], ids=["default", "everything", "sidecars", "small"]
)
def test_what_it_renders_is_valid_and_has_no_unknown_field(values: Object, tmp_path: Path) -> None:
    objects = rendered(values, tmp_path)
    named = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(named) == len(set(named))
    for o in objects:
        if o["kind"] not in {
            "ServiceMonitor",
            "PrometheusRule",
        }:  # the Prometheus operator's, not in Kubernetes' schemas
            kubernetes_validate.validate(o, all_versions()[-1], strict=True)


@pytest.mark.parametrize("name", manifests.MANIFESTS)
def test_the_plain_manifests_are_what_it_renders(name: str) -> None:
    assert (manifests.ROOT / "deploy/manifests" / name).read_text() == manifests.manifest(name), "run scripts/manifests"


def test_its_version_is_the_drivers() -> None:
    chart = yaml.safe_load((manifests.CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == modelmount.__version__


def test_the_schema_knows_every_value_and_every_setting() -> None:
    schema = json.loads(manifests.SCHEMA.read_text())
    values = yaml.safe_load((manifests.CHART / "values.yaml").read_text())
    assert manifests.SCHEMA.read_text() == manifests.schema(), "run scripts/manifests"
    compare(schema, values, schema["$defs"])


def compare(schema: Object, values: Object, definitions: Object) -> None:
    """Each table of values.yaml has exactly the keys of the schema, so that neither forgets one."""
    for key, value in values.items():
        described = schema["properties"][key]
        if "$ref" not in described and isinstance(value, dict) and "properties" in described:
            assert set(value) == set(described["properties"]), key
            compare(described, value, definitions)
    assert set(schema["properties"]) - set(values) <= {"global"}


def test_the_settings_reach_the_driver_as_they_were_said(tmp_path: Path) -> None:
    objects = rendered(EVERYTHING, tmp_path)
    for path, text in files(objects, "DaemonSet").items():
        file = tmp_path / "etc" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("/etc/modelmount/", f"{tmp_path}/etc/"))
    node = driver(one(objects, "DaemonSet"))
    environment = {e["name"]: e.get("value", "some-node") for e in node["env"]}
    settings = config.load(str(tmp_path / "etc/config.toml"), environment)
    said = EVERYTHING["config"]
    assert settings.allowed_registries == said["allowed_registries"]
    assert settings.registries["registry.internal:5000"].connections == 4
    assert settings.cache.max_bytes == 500_000_000_000
    assert settings.cache.share == 0.5
    assert settings.cache.pins == said["cache"]["pins"]
    assert settings.pull.idle_seconds == 90
    assert settings.auth.verification == "never"
    assert settings.auth.docker_config == "/etc/modelmount-registry/config.json"
    assert (settings.driver_name, settings.root) == ("models.example.com", "/data/models")
    mounted = {m["mountPath"] for m in node["volumeMounts"]}
    assert {str(settings.plugins_registry), str(settings.publish_roots[0]), settings.root} <= mounted
    assert str(Path(settings.socket_path).parent) in mounted
    assert settings.hosts_dir == str(tmp_path / "etc/hosts")


def files(objects: list[Object], kind: str) -> dict[str, str]:
    """What the pods of a workload find below /etc/modelmount."""
    data = one(objects, "ConfigMap")["data"]
    (volume,) = [v["configMap"] for v in pod(one(objects, kind))["volumes"] if v["name"] == "config"]
    return {item["path"]: data[item["key"]] for item in volume["items"]}


def test_ca_bundles_and_mirrors_are_files_where_the_settings_look_for_them(tmp_path: Path) -> None:
    objects = rendered(EVERYTHING, tmp_path)
    for kind in ("DaemonSet", "Deployment"):
        found = files(objects, kind)
        assert found["ca/internal.pem"] == PEM
        assert found["hosts/registry.internal:5000/hosts.toml"] == EVERYTHING["mirrors"]["registry.internal:5000"]


def test_a_policy_is_files_where_the_settings_look_for_them(tmp_path: Path) -> None:
    objects = rendered(EVERYTHING, tmp_path)
    found = files(objects, "DaemonSet")
    assert tomllib.loads(found["config.toml"])["policy_file"] == "/etc/modelmount/policy/policy.toml"
    for name in ("policy.toml", "prod.pub"):
        (tmp_path / "policy").mkdir(exist_ok=True)
        text = found[f"policy/{name}"].replace("/etc/modelmount/", f"{tmp_path}/")
        (tmp_path / "policy" / name).write_text(text)
    policy = policies.read(tmp_path / "policy/policy.toml")
    assert [rule.name for rule in policy.rules] == ["production", "default"]
    settings = rendered({}, tmp_path)
    assert "policy_file" not in tomllib.loads(one(settings, "ConfigMap")["data"]["config.toml"])


def test_settings_that_a_running_driver_takes_up_replace_no_pod(tmp_path: Path) -> None:
    def template(values: Object) -> Object:
        return dict(one(rendered(values, tmp_path), "DaemonSet")["spec"]["template"])

    changed = copy.deepcopy(EVERYTHING)
    changed["config"]["cache"]["max_bytes"] = 1
    changed["policy"]["policy.toml"] += "\n"
    assert template(changed) == template(EVERYTHING)
    changed["config"]["allowed_registries"] = []
    assert template(changed) != template(EVERYTHING)
    assert template({**EVERYTHING, "caBundles": {"internal.pem": f"{PEM}{PEM}"}}) != template(EVERYTHING)


@pytest.mark.parametrize("values", [{}, EVERYTHING, SIDECARS], ids=["default", "everything", "sidecars"])
def test_no_value_makes_two_drivers_on_one_node_or_limits_the_page_cache(values: Object, tmp_path: Path) -> None:
    node = one(rendered(values, tmp_path), "DaemonSet")
    assert node["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0
    assert pod(node)["priorityClassName"] == "system-node-critical"
    assert "memory" in driver(node)["resources"]["requests"]
    assert "limits" not in driver(node)["resources"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"kubletRoot": "/x"}, "kubletRoot"),
        ({"node": {"maxSurge": 1}}, "maxSurge"),
        ({"kubeletRoot": "var/lib/kubelet"}, "kubeletRoot"),
        ({"kubeletRoot": "/var/lib/kubelet/"}, "kubeletRoot"),
        ({"image": {"digest": "sha256:12"}}, "digest"),
        ({"config": {"cashe": {}}}, "cashe"),
        ({"config": {"cache": {"high_watermark": 175}}}, "high_watermark"),
        ({"config": {"root": "/elsewhere"}}, "root"),
        ({"config": {"registries": {"r.example.com": {"insecure": True}}}}, "insecure"),
        ({"caBundles": {"internal.pem": "/etc/ssl/internal.pem"}}, "internal.pem"),
        ({"storageClasses": [{"name": "no-model"}]}, "parameters"),
        ({"mirrors": {"r.example.com": "server = 'x'"}, "nodeMirrors": "/etc/certs.d"}, "exclude each other"),
        ({"policy": {"rules.toml": "[default]"}}, "policy needs a file policy.toml"),
        ({"policy": {"policy.toml": "[default]"}, "config": {"policy_file": "/etc/x"}}, "exclude each other"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_refused_before_anything_is_installed(values: Object, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        rendered(values, tmp_path)
    assert sentence in refused.value.stderr


def rights(objects: list[Object], account: str) -> dict[str, tuple[str, list[Object]]]:
    """What an account may do, by the name of its binding: where, and the rules."""
    rules = {o["metadata"]["name"]: o["rules"] for o in objects if o["kind"] in {"Role", "ClusterRole"}}
    return {
        f"{o['metadata']['name']} {o['metadata'].get('namespace', '')}".strip(): (
            o["kind"],
            rules[o["roleRef"]["name"]],
        )
        for o in objects
        if o["kind"] in {"RoleBinding", "ClusterRoleBinding"}
        and o["subjects"][0]["name"] == account
        and o["roleRef"]["name"] in rules
    }


def test_the_node_pods_get_a_token_and_rights_for_what_is_on_and_nothing_else(tmp_path: Path) -> None:
    for events, taint, secrets in itertools.product((False, True), repeat=3):
        values = {
            "events": {"enabled": events},
            "startupTaint": {"enabled": taint},
            "pullSecrets": {"enabled": secrets},
        }
        objects = rendered(values, tmp_path)
        expected = {
            "modelmount-events": (events, [(["events"], ["create", "patch"])]),
            "modelmount-startup-taint": (taint, [(["nodes"], ["get", "patch"]), (["csinodes"], ["get"])]),
            "modelmount-pull-secrets": (secrets, [(["serviceaccounts", "secrets"], ["get"])]),
        }
        found = rights(objects, "modelmount-node")
        assert set(found) == {name for name, (is_on, _) in expected.items() if is_on}
        for name, (_, rules) in found.items():
            assert [(rule["resources"], rule["verbs"]) for rule in rules] == expected[name][1]
        node = pod(one(objects, "DaemonSet"))
        assert node["automountServiceAccountToken"] is (events or taint or secrets)
        text = one(objects, "ConfigMap")["data"]["config.toml"]
        settings = msgspec.toml.decode(text).get("kubernetes", {})
        wanted: Object = {"events": False} if not events else {}
        wanted |= {"startup_taint": "modelmount.io/driver-not-ready"} if taint else {}
        assert settings == wanted | ({"pull_secrets": True} if secrets else {})


def test_secrets_are_read_in_the_namespaces_that_are_named(tmp_path: Path) -> None:
    objects = rendered(EVERYTHING, tmp_path)
    found = rights(objects, "models-node")
    assert {name: kind for name, (kind, _) in found.items() if "pull-secrets" in name} == {
        "models-pull-secrets team-a": "RoleBinding",
        "models-pull-secrets team-b": "RoleBinding",
    }


def test_openshift_gets_the_binding_and_the_label_that_it_wants(tmp_path: Path) -> None:
    def bound(values: Object) -> list[Object]:
        return [
            o
            for o in rendered(values, tmp_path)
            if o["kind"] == "RoleBinding" and o["roleRef"]["name"] == "system:openshift:scc:privileged"
        ]

    assert bound({}) == []
    (binding,) = bound(EVERYTHING)
    assert [subject["name"] for subject in binding["subjects"]] == ["models-node"]
    objects = rendered({"csiDriver": {"openshiftProfile": "baseline"}}, tmp_path)
    labels = one(objects, "CSIDriver")["metadata"]["labels"]
    assert labels["security.openshift.io/csi-ephemeral-volume-profile"] == "baseline"


def test_a_network_policy_lets_in_scrapes_and_lets_out_what_is_said(tmp_path: Path) -> None:
    def policy(**said: object) -> Object:
        objects = rendered({"networkPolicy": {"enabled": True, **said}, "controller": {"enabled": False}}, tmp_path)
        labels = one(objects, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
        found = dict(one(objects, "NetworkPolicy")["spec"])
        assert found["podSelector"]["matchLabels"].items() <= labels.items()
        assert [p["name"] for p in driver(one(objects, "DaemonSet"))["ports"]] == ["metrics"]
        return found

    anywhere = policy()
    assert anywhere["policyTypes"] == ["Ingress", "Egress"]
    assert anywhere["ingress"] == [{"ports": [{"port": "metrics"}]}]
    assert anywhere["egress"] == [{}]
    scraper = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    registry = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    bounded = policy(scrapers=[scraper], egress=[registry])
    assert bounded["ingress"] == [{"ports": [{"port": "metrics"}], "from": [scraper]}]
    assert bounded["egress"] == [registry]
    assert not [o for o in rendered({}, tmp_path) if o["kind"] == "NetworkPolicy"]


def test_another_kubelet_root_is_everywhere(tmp_path: Path) -> None:
    objects = rendered({"kubeletRoot": "/var/lib/k0s/kubelet"}, tmp_path)
    node = one(objects, "DaemonSet")
    assert "/var/lib/kubelet" not in yaml.safe_dump(node).replace("/var/lib/k0s/kubelet", "")
    settings = msgspec.toml.decode(one(objects, "ConfigMap")["data"]["config.toml"])
    assert settings["kubelet_root"] == "/var/lib/k0s/kubelet"


def test_alerts_and_dashboard_come_whole_when_they_are_wanted(tmp_path: Path) -> None:
    shown = {"dashboard": {"enabled": True, "labels": {"grafana_dashboard": "yes"}}}
    found = rendered({**EVERYTHING, "metrics": {**EVERYTHING["metrics"], **shown}}, tmp_path)
    objects = {o["kind"]: o for o in found if o["kind"] != "ConfigMap" or dashboard_of(o)}
    monitoring = manifests.CHART / "monitoring"
    assert objects["PrometheusRule"]["spec"] == yaml.safe_load((monitoring / "alerts.yaml").read_text())
    assert objects["PrometheusRule"]["metadata"]["labels"]["release"] == "prometheus"
    dashboard = objects["ConfigMap"]
    assert json.loads(dashboard_of(dashboard)) == json.loads((monitoring / "dashboard.json").read_text())
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "yes"
    assert not any(o["kind"] == "PrometheusRule" or dashboard_of(o) for o in rendered({}, tmp_path))


def dashboard_of(o: Object) -> str:
    """The text of the dashboard that a ConfigMap has, empty where it has none."""
    return str((o.get("data") or {}).get("modelmount.json", ""))


def test_with_capacity_the_provisioner_runs_on_the_nodes_in_place_of_the_controller(tmp_path: Path) -> None:
    objects = rendered({"capacity": {"enabled": True}}, tmp_path)
    for o in objects:
        kubernetes_validate.validate(o, all_versions()[-1], strict=True)
    assert not [o for o in objects if o["kind"] == "Deployment"]
    assert one(objects, "CSIDriver")["spec"]["storageCapacity"] is True
    workload = one(objects, "DaemonSet")
    assert {"name": "MODELMOUNT_MODE", "value": "all"} in driver(workload)["env"]
    (provisioner,) = [c for c in pod(workload)["containers"] if c["name"] == "csi-provisioner"]
    assert {"--node-deployment", "--enable-capacity"} <= set(provisioner["args"])
    assert pod(workload)["automountServiceAccountToken"] is True
    (bound,) = [
        o for o in objects if o["kind"] == "ClusterRoleBinding" and o["metadata"]["name"].endswith("provisioner")
    ]
    assert [subject["name"] for subject in bound["subjects"]] == ["modelmount-node"]
    assert "capacity = true" in one(objects, "ConfigMap")["data"]["config.toml"]
