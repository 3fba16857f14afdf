"""CSI Identity: who this is, what it can, whether it works. Served by every instance, whatever its mode."""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.wrappers_pb2 import BoolValue

import modelmount
from csi.v1 import csi_pb2
from modelmount import errors
from modelmount.service import methods, ports

_NAME = re.compile(r"[a-zA-Z](?:[a-zA-Z0-9._-]{0,61}[a-zA-Z])?", re.ASCII)
"""What the specification and csi-sanity agree on: at most 63 characters, a letter first and last."""


class Identity:
    """The Identity service. Raises InvalidRequest for a driver name that no orchestrator takes; the name is part of
    socket paths too.
    """

    def __init__(self, driver_name: str, readiness: ports.Readiness, *, topology: bool = False) -> None:
        if not _NAME.fullmatch(driver_name):
            raise errors.InvalidRequest(
                f"driver_name {driver_name!r} is no CSI driver name: up to 63 letters, digits, '.', '_' and '-', "
                "a letter first and last"
            )
        self._name = driver_name
        self._readiness, self._topology = readiness, topology

    def table(self) -> Iterable[methods.Method]:
        """Its methods."""
        return (
            methods.method(csi_pb2.GetPluginInfoRequest, self._info, instant=True),
            methods.method(csi_pb2.GetPluginCapabilitiesRequest, self._capabilities, instant=True),
            methods.method(csi_pb2.ProbeRequest, self._probe, instant=True),
        )

    def _info(self, request: csi_pb2.GetPluginInfoRequest, call: ports.Call) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=self._name, vendor_version=modelmount.__version__)

    def _capabilities(
        self, request: csi_pb2.GetPluginCapabilitiesRequest, call: ports.Call
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        # "The grand sum of all capabilities of all instances": a node-only instance answers the same.
        controller = csi_pb2.PluginCapability.Service(type=csi_pb2.PluginCapability.Service.CONTROLLER_SERVICE)
        offered = [csi_pb2.PluginCapability(service=controller)]
        if self._topology:
            kind = csi_pb2.PluginCapability.Service.VOLUME_ACCESSIBILITY_CONSTRAINTS
            offered.append(csi_pb2.PluginCapability(service=csi_pb2.PluginCapability.Service(type=kind)))
        return csi_pb2.GetPluginCapabilitiesResponse(capabilities=offered)

    def _probe(self, request: csi_pb2.ProbeRequest, call: ports.Call) -> csi_pb2.ProbeResponse:
        return csi_pb2.ProbeResponse(ready=BoolValue(value=not self._readiness()))
