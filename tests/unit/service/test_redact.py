from __future__ import annotations

import json

import pytest
from google.protobuf.descriptor import Descriptor

from csi.v1 import csi_pb2
from modelmount.service import redact
from tests.unit.service.conftest import MOUNT

MESSAGES = list(csi_pb2.DESCRIPTOR.message_types_by_name.values())


def _secret_fields(message: Descriptor) -> list[str]:
    return [field.name for field in message.fields if field.GetOptions().Extensions[csi_pb2.csi_secret]]


def test_every_field_that_holds_secrets_is_masked_in_every_message() -> None:
    masked = 0
    for described in MESSAGES:
        for name in _secret_fields(described):
            message = getattr(csi_pb2, described.name)(**{name: {"username": "joe", "password": "hunter2"}})
            shown = redact.request(message)
            assert shown == {name: "***"}
            masked += 1
    assert masked >= 9


def test_every_field_called_secrets_carries_the_option() -> None:
    for described in MESSAGES:
        assert [f.name for f in described.fields if f.name == "secrets"] == _secret_fields(described)


def test_service_account_tokens_in_the_volume_context_are_masked() -> None:
    request = csi_pb2.NodePublishVolumeRequest(
        volume_id="v",
        volume_context={
            "csi.storage.k8s.io/serviceAccount.tokens": '{"aud":{"token":"eyJhbGciOi"}}',
            "csi.storage.k8s.io/pod.name": "vllm-0",
        },
    )
    assert redact.request(request) == {
        "volume_id": "v",
        "volume_context": {"csi.storage.k8s.io/pod.name": "vllm-0", "csi.storage.k8s.io/serviceAccount.tokens": "***"},
    }


@pytest.mark.parametrize(
    "key", ["password", "registryToken", "apiKey", "api_key", "AUTHORIZATION", "clientSecret", "private-key"]
)
def test_an_attribute_named_like_a_credential_is_masked(key: str) -> None:
    assert redact.request(csi_pb2.CreateVolumeRequest(parameters={key: "hunter2"})) == {"parameters": {key: "***"}}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("oci://joe:hunter2@registry.example.com/llm/tiny", "oci://***@registry.example.com/llm/tiny"),
        ("joe:hunter2@registry.example.com/llm/tiny", "***@registry.example.com/llm/tiny"),
        ("https://blobs.example.com/x?X-Amz-Signature=hunter2", "https://blobs.example.com/x?***"),
        ("registry.example.com/llm/tiny@sha256:abc", "registry.example.com/llm/tiny@sha256:abc"),
        ("oci://joe:hun/ter@2@registry.example.com/x:v1@sha256:abc", "oci://***@registry.example.com/x:v1@sha256:abc"),
        ("joe:hun/ter2@registry.example.com:5000/llm/tiny", "***@registry.example.com:5000/llm/tiny"),
        ("registry.example.com:5000/llm/tiny:v1", "registry.example.com:5000/llm/tiny:v1"),
    ],
)
def test_userinfo_and_queries_of_references_are_masked(value: str, shown: str) -> None:
    assert redact.request(csi_pb2.CreateVolumeRequest(parameters={"model": value})) == {"parameters": {"model": shown}}


def test_a_mount_flag_keeps_its_name_and_loses_its_value() -> None:
    capability = csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(mount_flags=["ro", "password=hunter2"])
    )
    assert redact.request(capability) == {"mount": {"mount_flags": ["ro", "password=***"]}}


def test_nested_messages_and_enumerations_are_shown_by_name() -> None:
    request = csi_pb2.CreateVolumeRequest(name="n", volume_capabilities=[MOUNT], secrets={"a": "b"})
    assert redact.request(request) == {
        "name": "n",
        "volume_capabilities": [{"mount": {}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}}],
        "secrets": "***",
    }


def test_an_enumeration_value_nobody_knows_is_shown_as_a_number_and_the_result_is_json() -> None:
    request = csi_pb2.VolumeCapability.AccessMode()
    request.ParseFromString(b"\x08\x63")
    assert json.dumps(redact.request(request)) == '{"mode": 99}'
