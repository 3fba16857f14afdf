from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from csi.v1 import csi_pb2
from tests.unit.service.conftest import BLOCK, MOUNT, Door, raw, refusal

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MODEL = {"model": "registry.example.com/llm/tiny:v1"}


def create_request(**fields: object) -> csi_pb2.CreateVolumeRequest:
    wanted: dict[str, object] = {"name": "pvc-1", "volume_capabilities": [MOUNT], "parameters": MODEL, **fields}
    return csi_pb2.CreateVolumeRequest(**wanted)  # type: ignore[arg-type]


def test_the_controller_offers_create_and_delete_only(door: Door) -> None:
    answer = door.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest())
    assert [c.rpc.type for c in answer.capabilities] == [csi_pb2.ControllerServiceCapability.RPC.CREATE_DELETE_VOLUME]


def test_a_volume_of_one_name_has_one_id_its_attributes_and_unknown_capacity(door: Door) -> None:
    sized = csi_pb2.CapacityRange(required_bytes=10 << 30, limit_bytes=20 << 30)
    first = door.controller.CreateVolume(create_request()).volume
    again = door.controller.CreateVolume(create_request(capacity_range=sized)).volume
    other = door.controller.CreateVolume(create_request(name="pvc-2")).volume
    assert first == again
    assert first.volume_id not in ("", other.volume_id)
    assert dict(first.volume_context) == MODEL
    assert first.capacity_bytes == 0


def test_create_misses_the_name_before_the_capabilities_before_the_parameters(door: Door) -> None:
    request = csi_pb2.CreateVolumeRequest()
    for word in ("name", "volume_capabilities", "'model'"):
        refused = refusal(door.controller.CreateVolume, request)
        assert refused.code is INVALID
        assert word in refused.message
        if word == "name":
            request.name = "pvc-1"
        else:
            request.volume_capabilities.append(MOUNT)


@pytest.mark.parametrize("name", ["x" * 128, "ü" * 64, "with space", "a\tb\nc\rd", "../x", "模型"])
def test_a_volume_name_may_be_128_bytes_of_nearly_any_text(door: Door, name: str) -> None:
    assert door.controller.CreateVolume(create_request(name=name)).volume.volume_id


@pytest.mark.parametrize("name", ["x" * 129, "ü" * 65, "\0", "a\x08", "a\x0b", "a\x1f", "a\x7f", "a\x9f"])
def test_a_volume_name_over_128_bytes_or_with_control_characters_is_refused(door: Door, name: str) -> None:
    assert refusal(door.controller.CreateVolume, create_request(name=name)).code is INVALID


def test_all_capabilities_are_checked_and_not_only_the_first(door: Door) -> None:
    refused = refusal(door.controller.CreateVolume, create_request(volume_capabilities=[MOUNT, BLOCK]))
    assert refused.code is INVALID
    assert "block device" in refused.message


@pytest.mark.parametrize(
    ("required", "limit", "code"),
    [
        (-1, 0, INVALID),
        (0, -1, INVALID),
        (-(2**63), 2**63 - 1, INVALID),
        (2, 1, grpc.StatusCode.OUT_OF_RANGE),
        (2**63 - 1, 1, grpc.StatusCode.OUT_OF_RANGE),
    ],
)
def test_a_capacity_range_that_is_negative_or_empty_is_refused(
    door: Door, required: int, limit: int, code: grpc.StatusCode
) -> None:
    request = create_request(capacity_range=csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit))
    assert refusal(door.controller.CreateVolume, request).code is code


@pytest.mark.parametrize(("required", "limit"), [(0, 0), (0, 1), (1, 0), (1, 1), (2**63 - 1, 2**63 - 1)])
def test_a_capacity_range_that_makes_sense_is_accepted(door: Door, required: int, limit: int) -> None:
    request = create_request(capacity_range=csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit))
    assert door.controller.CreateVolume(request).volume.capacity_bytes == 0


def test_parameters_over_4_kib_are_refused(door: Door) -> None:
    refused = refusal(door.controller.CreateVolume, create_request(parameters={**MODEL, "include": "x" * 4096}))
    assert refused.code is INVALID
    assert "4096" in refused.message


def test_a_content_source_and_mutable_parameters_are_refused(door: Door) -> None:
    source = csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id="v"))
    for request in (create_request(volume_content_source=source), create_request(mutable_parameters={"a": "b"})):
        assert refusal(door.controller.CreateVolume, request).code is INVALID


def test_a_model_that_the_admin_forbids_is_permission_denied(door: Door) -> None:
    request = create_request(parameters={"model": "registry.bad/llm/tiny"})
    assert refusal(door.controller.CreateVolume, request).code is grpc.StatusCode.PERMISSION_DENIED


def test_deleting_is_fine_for_any_id_and_twice_but_needs_one(door: Door) -> None:
    for volume_id in ("fake-vol-id", "fake-vol-id", "mm1-0", "../x"):
        door.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume_id))
    assert refusal(door.controller.DeleteVolume, csi_pb2.DeleteVolumeRequest()).code is INVALID


def validate_request(**fields: object) -> csi_pb2.ValidateVolumeCapabilitiesRequest:
    wanted: dict[str, object] = {"volume_id": "fake-1", "volume_capabilities": [MOUNT], **fields}
    return csi_pb2.ValidateVolumeCapabilitiesRequest(**wanted)  # type: ignore[arg-type]


def test_validation_confirms_what_it_was_asked_about(door: Door) -> None:
    answer = door.controller.ValidateVolumeCapabilities(validate_request(volume_context=MODEL, parameters=MODEL))
    assert list(answer.confirmed.volume_capabilities) == [MOUNT]
    assert dict(answer.confirmed.volume_context) == MODEL
    assert dict(answer.confirmed.parameters) == MODEL
    assert answer.message == ""


@pytest.mark.parametrize(
    "fields",
    [
        {"volume_capabilities": [MOUNT, BLOCK]},
        {"volume_context": {"modle": "typo"}},
        {"parameters": {"model": "registry.bad/llm/tiny"}},
        {"mutable_parameters": {"a": "b"}},
    ],
)
def test_validation_of_the_unsupported_is_ok_with_a_message_and_no_confirmation(
    door: Door, fields: dict[str, object]
) -> None:
    answer = door.controller.ValidateVolumeCapabilities(validate_request(**fields))
    assert not answer.HasField("confirmed")
    assert answer.message


def test_validation_misses_the_id_then_the_capabilities_then_the_volume(door: Door) -> None:
    for fields, code in (
        ({"volume_id": "", "volume_capabilities": []}, INVALID),
        ({"volume_id": "someone-elses", "volume_capabilities": []}, INVALID),
        ({"volume_id": "someone-elses"}, grpc.StatusCode.NOT_FOUND),
        ({"volume_capabilities": [csi_pb2.VolumeCapability()]}, INVALID),
    ):
        request = validate_request(**fields)
        assert refusal(door.controller.ValidateVolumeCapabilities, request).code is code


def test_every_other_controller_method_is_unimplemented(door: Door) -> None:
    for described in csi_pb2.DESCRIPTOR.services_by_name["Controller"].methods:
        if described.name in (
            "CreateVolume",
            "DeleteVolume",
            "ValidateVolumeCapabilities",
            "ControllerGetCapabilities",
        ):
            continue
        call = raw(door.channel, f"/csi.v1.Controller/{described.name}")
        assert refusal(call, b"").code is grpc.StatusCode.UNIMPLEMENTED


def test_methods_and_services_nobody_knows_are_unimplemented(door: Door) -> None:
    for path in ("/csi.v1.Controller/CreateSnapshot", "/csi.v1.Node/Nonsense", "/csi.v1.GroupController/X", "/no/such"):
        call = raw(door.channel, path)
        assert refusal(call, b"").code is grpc.StatusCode.UNIMPLEMENTED


def test_a_node_instance_serves_no_controller_calls(open_door: Callable[..., Door]) -> None:
    door = open_door(mode="node")
    assert refusal(door.controller.CreateVolume, create_request()).code is grpc.StatusCode.UNIMPLEMENTED
