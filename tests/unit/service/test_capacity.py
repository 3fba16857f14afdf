"""GetCapacity and the topology, by gRPC: there where the admin wants them, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from csi.v1 import csi_pb2
from modelmount import config
from modelmount.config import checks
from tests.unit.service.conftest import BLOCK, CAPACITY, MOUNT, Door, refusal

TOLD = {"kubernetes": {"capacity": True}}
HERE = {"csi.modelmount.io/node": "node-1"}
RPC = csi_pb2.ControllerServiceCapability.RPC


@pytest.fixture
def told(open_door: Callable[..., Door]) -> Door:
    return open_door(**TOLD)


def capacity(door: Door, **fields: object) -> csi_pb2.GetCapacityResponse:
    return door.controller.GetCapacity(csi_pb2.GetCapacityRequest(**fields))  # type: ignore[arg-type]


def test_it_is_offered_and_answered_with_what_the_cache_has(told: Door) -> None:
    offered = told.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest()).capabilities
    assert [each.rpc.type for each in offered] == [RPC.CREATE_DELETE_VOLUME, RPC.GET_CAPACITY]
    for fields in ({}, {"volume_capabilities": [MOUNT]}, {"accessible_topology": csi_pb2.Topology(segments=HERE)}):
        answer = capacity(told, **fields)
        assert answer.available_capacity == CAPACITY
        assert answer.maximum_volume_size.value == CAPACITY


def test_other_nodes_and_what_no_model_can_be_have_nothing(told: Door) -> None:
    elsewhere = csi_pb2.Topology(segments={"csi.modelmount.io/node": "node-2"})
    assert capacity(told, accessible_topology=elsewhere).available_capacity == 0
    unknown = csi_pb2.Topology(segments={"zone": "a"})
    assert capacity(told, accessible_topology=unknown).available_capacity == 0
    assert capacity(told, volume_capabilities=[BLOCK]).available_capacity == 0


def test_a_node_is_a_topology_of_its_own(told: Door) -> None:
    info = told.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest())
    assert dict(info.accessible_topology.segments) == HERE
    services = told.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest()).capabilities
    kind = csi_pb2.PluginCapability.Service
    assert [each.service.type for each in services] == [
        kind.CONTROLLER_SERVICE,
        kind.VOLUME_ACCESSIBILITY_CONSTRAINTS,
    ]


def test_volumes_may_be_used_on_every_node_all_the_same(told: Door) -> None:
    wanted = csi_pb2.CreateVolumeRequest(
        name="pvc-1", volume_capabilities=[MOUNT], parameters={"model": "registry.example.com/llm/tiny:v1"}
    )
    wanted.accessibility_requirements.preferred.add(segments=HERE)
    assert not told.controller.CreateVolume(wanted).volume.accessible_topology


def test_nothing_of_it_is_there_where_nobody_wants_it(door: Door) -> None:
    assert refusal(door.controller.GetCapacity, csi_pb2.GetCapacityRequest()).code is grpc.StatusCode.UNIMPLEMENTED
    assert not door.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest()).HasField("accessible_topology")
    services = door.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest()).capabilities
    assert [each.service.type for each in services] == [csi_pb2.PluginCapability.Service.CONTROLLER_SERVICE]


@pytest.mark.parametrize("mode", ["node", "controller"])
def test_it_takes_a_driver_that_is_both(mode: str) -> None:
    settings = config.Settings(mode=mode, kubernetes=config.Kubernetes(capacity=True))  # type: ignore[arg-type]
    assert any("kubernetes.capacity needs mode all" in found for found in checks.problems(settings))
