"""What a volume's attributes may say. Rows R8 to R11, R13 and R14 of the threat table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.config import Settings
from modelmount.errors import Forbidden, InvalidRequest, ModelMountError
from modelmount.formats.selection import EVERYTHING
from modelmount.volumes import volume
from modelmount.volumes.volume import VolumeSpec

MODEL = "harbor.example.com/llm/llama3-70b:v1"


def settings(**fields: Any) -> Settings:
    return msgspec.convert(fields, Settings)


def refusal(attributes: Mapping[str, str]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        VolumeSpec.parse(attributes)
    return caught.value.message


def test_a_model_alone_means_the_defaults() -> None:
    spec = VolumeSpec.parse({"model": MODEL})
    assert (str(spec.reference), spec.pull_policy, spec.selection) == (MODEL, "IfNotPresent", EVERYTHING)


@pytest.mark.parametrize("policy", ["IfNotPresent", "Always", "Never"])
def test_every_policy_is_taken(policy: str) -> None:
    assert VolumeSpec.parse({"model": MODEL, "pullPolicy": policy, "mode": "eager"}).pull_policy == policy


def test_equal_meanings_are_equal_specs() -> None:
    assert VolumeSpec.parse({"model": MODEL}) == VolumeSpec.parse({"model": f"oci://{MODEL}", "mode": "eager"})
    assert VolumeSpec.parse({"model": MODEL}) != VolumeSpec.parse({"model": MODEL, "pullPolicy": "Always"})


@pytest.mark.parametrize("attributes", [{}, {"model": ""}, {"pullPolicy": "Always"}])
def test_a_missing_model_is_refused_with_an_example(attributes: dict[str, str]) -> None:
    assert "harbor.example.com" in refusal(attributes)


def test_lazy_is_refused_with_what_to_use() -> None:
    assert "eager" in refusal({"model": MODEL, "mode": "lazy"})


def test_r8_a_host_off_the_allow_list_is_forbidden() -> None:
    spec = VolumeSpec.parse({"model": "evil.example.org/llm/x"})
    spec.check_allowed(settings())
    with pytest.raises(Forbidden, match="allow-list"):
        spec.check_allowed(settings(allowed_registries=["*.example.com", "ghcr.io"]))
    VolumeSpec.parse({"model": MODEL}).check_allowed(settings(allowed_registries=["*.example.com"]))


@pytest.mark.parametrize(
    "host", ["127.0.0.1:5000", "localhost", "10.0.0.1", "2130706433:80", "[::1]:5000", "x.localhost"]
)
def test_r8_an_address_is_allowed_only_by_its_own_name(host: str) -> None:
    spec = VolumeSpec.parse({"model": f"{host}/llm/x"})
    with pytest.raises(InvalidRequest, match="admin must list it"):
        spec.check_allowed(settings(allowed_registries=["*"]))
    spec.check_allowed(settings(registries={host: {}}))


@pytest.mark.parametrize("key", ["modell", "Model", "MODEL", "pullpolicy", "model ", "modеl", ""])
def test_r9_a_key_that_is_not_known_is_named(key: str) -> None:
    message = refusal({"model": MODEL, key: "x"})
    assert ascii(key) in message
    assert "model, pullPolicy, mode" in message


@pytest.mark.parametrize("value", ["yes", "always", "ALWAYS", "Always ", "", "true"])
def test_r9_a_value_that_is_not_known_is_refused_with_the_choices(value: str) -> None:
    assert "IfNotPresent, Always, Never" in refusal({"model": MODEL, "pullPolicy": value})


def test_r10_large_attributes_are_refused() -> None:
    for large in ({"mode": "x" * (1 << 20)}, {f"key-{n}": "v" for n in range(10_000)}, {"mode": "ü" * 2048}):
        message = refusal({"model": MODEL, **large})
        assert "4096" in message
        assert len(message) < 200


def test_r10_what_kubernetes_adds_does_not_count() -> None:
    VolumeSpec.parse({"model": MODEL, "csi.storage.k8s.io/serviceAccount.tokens": "t" * 8000})


@pytest.mark.parametrize(
    "key",
    ["plain_http", "insecure", "root", "mount_flags", "ca_file", "verification", "allowed_registries", "policy", "pin"],
)
def test_r11_no_attribute_overrides_an_admin(key: str) -> None:
    assert key in refusal({"model": MODEL, key: "true"})


def test_keys_of_later_versions_are_refused_by_name() -> None:
    for key in volume.LATER_KEYS:
        assert "not supported by this version" in refusal({"model": MODEL, key: "x"})


@pytest.mark.parametrize("text", ["x\nkind: Pod", '"}]', "\u2028", "\x1b[31m", "a" * 3000, "\r\nInjected: yes"])
def test_r13_fragments_come_back_escaped_on_one_line(text: str) -> None:
    for attributes in ({"pullPolicy": text}, {"mode": text}, {text: "x"}, {"model": text}):
        message = refusal({"model": MODEL, **attributes})
        assert message.isprintable()
        assert len(message) < 1000


def test_r14_the_kubelets_keys_are_never_part_of_what_a_volume_is() -> None:
    forged = {
        "csi.storage.k8s.io/pod.name": "admin",
        "csi.storage.k8s.io/anything": "x",
        "storage.kubernetes.io/csiProvisionerIdentity": "1-csi.modelmount.io",
    }
    assert VolumeSpec.parse({"model": MODEL, **forged}) == VolumeSpec.parse({"model": MODEL})
    assert volume.significant({"model": MODEL, **forged}) == {"model": MODEL}


def test_a_pods_name_and_uid_are_read_for_logs() -> None:
    keys = {
        "csi.storage.k8s.io/pod.name": "p",
        "csi.storage.k8s.io/pod.namespace": "n",
        "csi.storage.k8s.io/pod.uid": "u",
    }
    assert (volume.pod_name(keys), volume.pod_uid(keys)) == ("n/p", "u")
    assert (volume.pod_name({}), volume.pod_uid({})) == ("", "")


def test_tokens_of_service_accounts_are_looked_for_among_the_secrets_first() -> None:
    key = "csi.storage.k8s.io/serviceAccount.tokens"
    assert volume.account_tokens({key: "context"}, {key: "secret"}) == "secret"
    assert volume.account_tokens({key: "context"}, {"other": "secret"}) == "context"
    assert volume.account_tokens({"model": MODEL}, {}) == ""


@given(
    st.dictionaries(st.sampled_from(["model", "pullPolicy", "mode", "x"]) | st.text(max_size=20), st.text(max_size=99))
)
def test_any_attributes_are_read_or_refused_in_words(attributes: dict[str, str]) -> None:
    try:
        spec = VolumeSpec.parse(attributes)
    except ModelMountError as e:
        assert json.dumps(e.message).isascii()
    else:
        assert VolumeSpec.parse({**attributes, "model": str(spec.reference)}) == spec
