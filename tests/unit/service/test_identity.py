from __future__ import annotations

import re
from collections.abc import Callable

import grpc
import pytest

import modelmount
from csi.v1 import csi_pb2
from modelmount import errors
from modelmount.service import identity
from tests.unit.service.conftest import Door, refusal


def test_the_plugin_says_who_it_is(door: Door) -> None:
    info = door.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest())
    assert info.name == "csi.modelmount.io"
    assert re.fullmatch(r"[a-zA-Z][A-Za-z0-9-._]{0,61}[a-zA-Z]", info.name)
    assert info.vendor_version == modelmount.__version__


@pytest.mark.parametrize("mode", ["all", "node", "controller"])
def test_instances_of_every_mode_report_the_same_capabilities(open_door: Callable[..., Door], mode: str) -> None:
    answer = open_door(mode=mode).identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest())
    service = csi_pb2.PluginCapability.Service(type=csi_pb2.PluginCapability.Service.CONTROLLER_SERVICE)
    assert list(answer.capabilities) == [csi_pb2.PluginCapability(service=service)]


@pytest.mark.parametrize("ready", [True, False])
def test_probe_says_whether_the_driver_is_ready(door: Door, *, ready: bool) -> None:
    door.ready[0] = ready
    answer = door.identity.Probe(csi_pb2.ProbeRequest())
    assert answer.HasField("ready")
    assert answer.ready.value is ready


def test_probe_of_a_broken_driver_fails_with_failed_precondition(door: Door) -> None:
    door.ready[0] = errors.Precondition("the store /var/lib/modelmount is read-only; check the disk")
    refused = refusal(door.identity.Probe, csi_pb2.ProbeRequest())
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "read-only" in refused.message


@pytest.mark.parametrize("name", ["", "1driver", "driver1", "a" * 64, "a/b", "../evil", "ä.b", "a\n"])
def test_a_driver_name_that_orchestrators_refuse_is_refused_at_once(name: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="driver_name"):
        identity.Identity(name, lambda: "")
