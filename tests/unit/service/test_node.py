from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from csi.v1 import csi_pb2
from modelmount import errors
from modelmount.service import checks, node
from tests.fakes.publisher import FakePublisher, Stats
from tests.unit.service.conftest import BLOCK, MOUNT, Door, publish_request, refusal

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def test_a_node_knows_its_name_has_no_limit_and_no_topology(door: Door) -> None:
    info = door.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest())
    assert info == csi_pb2.NodeGetInfoResponse(node_id="node-1", max_volumes_per_node=0)


def test_without_a_configured_name_the_node_has_the_name_of_its_host(open_door: Callable[..., Door]) -> None:
    assert open_door(node_id="").node.NodeGetInfo(csi_pb2.NodeGetInfoRequest()).node_id


@pytest.mark.parametrize("node_id", ["", "n" * 257])
def test_a_node_id_outside_1_to_256_bytes_is_refused_at_once(node_id: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="node_id"):
        node.Node(FakePublisher(), node_id=node_id, waiters=1)


def test_the_node_offers_stats_and_condition_and_nothing_else(door: Door) -> None:
    answer = door.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest())
    offered = csi_pb2.NodeServiceCapability.RPC
    assert [c.rpc.type for c in answer.capabilities] == [offered.GET_VOLUME_STATS, offered.VOLUME_CONDITION]


def test_publish_hands_everything_to_the_publisher(door: Door) -> None:
    request = publish_request(
        secrets={"token": "hunter2"},
        readonly=True,
        volume_capability=csi_pb2.VolumeCapability(
            mount=csi_pb2.VolumeCapability.MountVolume(fs_type="ext4", mount_flags=["noexec", "ro", "noexec"])
        ),
    )
    door.node.NodePublishVolume(request)
    published = door.publisher.published["/pods/0/mount"]
    assert published.volume_id == "volume-0"
    assert published.attributes == {"model": "registry.example.com/llm/tiny:v1"}
    assert published.secrets == {"token": "hunter2"}
    assert published.mount_flags == ("noexec", "ro")
    assert published.readonly is True
    assert "hunter2" not in repr(published)


@pytest.mark.parametrize("mode", [m for m in csi_pb2.VolumeCapability.AccessMode.Mode.values() if m])
def test_every_known_access_mode_is_accepted_also_without_readonly(
    door: Door, mode: csi_pb2.VolumeCapability.AccessMode.Mode.ValueType
) -> None:
    capability = csi_pb2.VolumeCapability(mount=csi_pb2.VolumeCapability.MountVolume())
    capability.access_mode.mode = mode
    request = publish_request()
    request.volume_capability.CopyFrom(capability)
    door.node.NodePublishVolume(request)


def test_required_fields_are_missed_in_the_order_volume_id_target_path_capability(door: Door) -> None:
    request = csi_pb2.NodePublishVolumeRequest()
    for field, value in (("volume_id", "v"), ("target_path", "/t")):
        refused = refusal(door.node.NodePublishVolume, request)
        assert refused.code is INVALID
        assert field in refused.message
        setattr(request, field, value)
    refused = refusal(door.node.NodePublishVolume, request)
    assert refused.code is INVALID
    assert "volume_capability" in refused.message
    assert door.publisher.calls == []


@pytest.mark.parametrize(
    "volume_id", ["a\nb", "\0", "nul\0in the middle", "c1 \x85", "del \x7f", "x" * 257, "é" * 129, "x" * 4096]
)
def test_a_volume_id_with_control_characters_or_over_256_bytes_is_refused_by_every_call(
    door: Door, volume_id: str
) -> None:
    publish = publish_request()
    publish.volume_id = volume_id
    calls: list[Callable[[], object]] = [
        lambda: door.node.NodePublishVolume(publish),
        lambda: door.node.NodeUnpublishVolume(
            csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path="/t")
        ),
        lambda: door.node.NodeGetVolumeStats(csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path="/t")),
        lambda: door.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume_id)),
        lambda: door.controller.ValidateVolumeCapabilities(
            csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id=volume_id, volume_capabilities=[MOUNT])
        ),
    ]
    for call in calls:
        refused = refusal(call)
        assert refused.code is INVALID
        assert "volume id" in refused.message


@pytest.mark.parametrize(
    "volume_id", ["../../etc", "/", ".", "..", "模型 🦙", "x" * 256, " ", "a\u202eb", "team@model?x=y"]
)
def test_a_volume_id_may_be_any_other_text(door: Door, volume_id: str) -> None:
    request = publish_request()
    request.volume_id = volume_id
    door.node.NodePublishVolume(request)
    assert door.publisher.published["/pods/0/mount"].volume_id == volume_id


def test_block_access_is_refused(door: Door) -> None:
    request = publish_request()
    request.volume_capability.CopyFrom(BLOCK)
    refused = refusal(door.node.NodePublishVolume, request)
    assert refused.code is INVALID
    assert "block device" in refused.message


@pytest.mark.parametrize("mode", [0, 99, -1])
def test_an_access_mode_that_is_unknown_is_refused(door: Door, mode: int) -> None:
    request = publish_request()
    request.volume_capability.access_mode.mode = mode  # type: ignore[assignment]
    assert refusal(door.node.NodePublishVolume, request).code is INVALID


def test_a_capability_without_access_mode_or_access_type_is_refused(door: Door) -> None:
    for part in ("access_mode", "mount"):
        request = publish_request()
        request.volume_capability.ClearField(part)
        assert refusal(door.node.NodePublishVolume, request).code is INVALID


@pytest.mark.parametrize(
    "flag", ["suid", "dev", "exec", "bind", "rw", "rshared", "remount", "RO", "", "ro,suid", "uid=0"]
)
def test_a_mount_flag_that_loosens_the_mount_is_refused(door: Door, flag: str) -> None:
    request = publish_request()
    request.volume_capability.mount.mount_flags.append(flag)
    refused = refusal(door.node.NodePublishVolume, request)
    assert refused.code is INVALID
    assert "mount option" in refused.message


def test_the_value_of_a_refused_mount_flag_is_not_repeated(door: Door) -> None:
    request = publish_request()
    request.volume_capability.mount.mount_flags.append("password=hunter2")
    assert "hunter2" not in refusal(door.node.NodePublishVolume, request).message


@pytest.mark.parametrize("flag", sorted(checks.MOUNT_FLAGS))
def test_a_mount_flag_that_takes_something_away_is_accepted(door: Door, flag: str) -> None:
    request = publish_request()
    request.volume_capability.mount.mount_flags.append(flag)
    door.node.NodePublishVolume(request)
    assert door.publisher.published["/pods/0/mount"].mount_flags == (flag,)


def test_publishing_twice_is_fine_and_with_other_attributes_already_exists(door: Door) -> None:
    door.node.NodePublishVolume(publish_request())
    door.node.NodePublishVolume(publish_request())
    other = publish_request(volume_context={"model": "registry.example.com/llm/other:v1"})
    assert refusal(door.node.NodePublishVolume, other).code is grpc.StatusCode.ALREADY_EXISTS


def test_unpublish_reaches_the_publisher_and_misses_its_fields_in_order(door: Door) -> None:
    request = csi_pb2.NodeUnpublishVolumeRequest()
    for field, value in (("volume_id", "v"), ("target_path", "/t")):
        refused = refusal(door.node.NodeUnpublishVolume, request)
        assert refused.code is INVALID
        assert field in refused.message
        setattr(request, field, value)
    door.node.NodeUnpublishVolume(request)
    door.node.NodeUnpublishVolume(request)
    assert door.publisher.unpublished == [("v", "/t"), ("v", "/t")]


def test_stats_report_total_as_used_plus_available_and_a_condition(door: Door) -> None:
    door.node.NodePublishVolume(publish_request())
    door.publisher.stats_answer = Stats(abnormal=True, message="weights.safetensors is missing")
    answer = door.node.NodeGetVolumeStats(
        csi_pb2.NodeGetVolumeStatsRequest(volume_id="volume-0", volume_path="/pods/0/mount")
    )
    assert list(answer.usage) == [
        csi_pb2.VolumeUsage(used=1000, available=9000, total=10000, unit=csi_pb2.VolumeUsage.BYTES),
        csi_pb2.VolumeUsage(used=3, available=97, total=100, unit=csi_pb2.VolumeUsage.INODES),
    ]
    assert answer.volume_condition == csi_pb2.VolumeCondition(abnormal=True, message="weights.safetensors is missing")


def test_stats_of_an_unknown_volume_or_another_path_are_not_found(door: Door) -> None:
    door.node.NodePublishVolume(publish_request())
    for volume_id, path in (("volume-1", "/pods/0/mount"), ("volume-0", "some/path")):
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=path)
        assert refusal(door.node.NodeGetVolumeStats, request).code is grpc.StatusCode.NOT_FOUND


def test_stats_miss_their_fields(door: Door) -> None:
    for request in (
        csi_pb2.NodeGetVolumeStatsRequest(volume_path="/t"),
        csi_pb2.NodeGetVolumeStatsRequest(volume_id="v"),
    ):
        assert refusal(door.node.NodeGetVolumeStats, request).code is INVALID


def test_stage_unstage_and_expand_are_unimplemented_with_a_sentence(door: Door) -> None:
    calls: list[Callable[[], object]] = [
        lambda: door.node.NodeStageVolume(csi_pb2.NodeStageVolumeRequest(volume_id="v")),
        lambda: door.node.NodeUnstageVolume(csi_pb2.NodeUnstageVolumeRequest(volume_id="v")),
        lambda: door.node.NodeExpandVolume(csi_pb2.NodeExpandVolumeRequest(volume_id="v")),
    ]
    for call in calls:
        refused = refusal(call)
        assert refused.code is grpc.StatusCode.UNIMPLEMENTED
        assert "isn't offered" in refused.message


def test_a_controller_instance_serves_no_node_calls_and_does_not_register(open_door: Callable[..., Door]) -> None:
    door = open_door(mode="controller")
    assert refusal(door.node.NodePublishVolume, publish_request()).code is grpc.StatusCode.UNIMPLEMENTED
    assert not door.registration_socket.exists()
