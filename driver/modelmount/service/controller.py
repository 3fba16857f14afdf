"""CSI Controller: a volume is a promise about a model. Nothing stored; the same name gives the same id."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from csi.v1 import csi_pb2
from modelmount import config, errors
from modelmount.service import checks, methods, ports


class Controller:
    """The Controller service, stateless: any number of instances may answer.

    Without state it cannot notice that a name comes again with other parameters; the provisioner's names are unique
    (`pvc-<uid>`).
    """

    def __init__(
        self,
        promises: ports.Promises,
        settings: config.Settings,
        *,
        capacity: Callable[[], int] | None = None,
        topology: Mapping[str, str] | None = None,
    ) -> None:
        """`capacity` says how many bytes a new model may have on the node that `topology` names; without it nobody is
        told.
        """
        self._promises = promises
        self._settings = settings
        self._capacity, self._topology = capacity, dict(topology or {})

    def table(self) -> Iterable[methods.Method]:
        """Its methods; all others answer UNIMPLEMENTED."""
        return (
            methods.method(csi_pb2.CreateVolumeRequest, self._create, level=logging.INFO),
            methods.method(csi_pb2.DeleteVolumeRequest, self._delete, level=logging.INFO),
            methods.method(csi_pb2.ValidateVolumeCapabilitiesRequest, self._validate),
            methods.method(csi_pb2.ControllerGetCapabilitiesRequest, self._capabilities, instant=True),
            *(() if self._capacity is None else (methods.method(csi_pb2.GetCapacityRequest, self._get_capacity),)),
        )

    def _create(self, request: csi_pb2.CreateVolumeRequest, call: ports.Call) -> csi_pb2.CreateVolumeResponse:
        name = checks.name(request.name)
        for capability in checks.capabilities(request.volume_capabilities):
            checks.supported(capability)
        checks.capacity(request.capacity_range)
        if request.HasField("volume_content_source"):
            raise errors.InvalidRequest(
                "a volume cannot be made from a snapshot or another volume; name a model instead"
            )
        if request.mutable_parameters:
            raise errors.InvalidRequest(
                "a volume has no mutable parameters: it shows one model for as long as it lives"
            )
        promise = self._promises.create(name, dict(checks.bounded(request.parameters, "parameters")), self._settings)
        return csi_pb2.CreateVolumeResponse(
            volume=csi_pb2.Volume(volume_id=promise.volume_id, volume_context=promise.context)
        )

    def _delete(self, request: csi_pb2.DeleteVolumeRequest, call: ports.Call) -> csi_pb2.DeleteVolumeResponse:
        checks.volume_id(
            request.volume_id
        )  # nothing was stored, so that there is nothing to delete and every id is fine
        return csi_pb2.DeleteVolumeResponse()

    def _validate(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, call: ports.Call
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        volume_id = checks.volume_id(request.volume_id)
        capabilities = checks.capabilities(request.volume_capabilities)
        if not self._promises.is_ours(volume_id):
            raise errors.NotFound(f"volume {volume_id!r} wasn't made by this driver")
        try:
            for capability in capabilities:
                checks.supported(capability)
            for attributes in (request.volume_context, request.parameters):
                if attributes:
                    self._promises.check_attributes(dict(attributes), self._settings)
            if request.mutable_parameters:
                raise errors.InvalidRequest("a volume has no mutable parameters")
        except (errors.InvalidRequest, errors.Forbidden) as e:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=e.message)
        confirmed = csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context, volume_capabilities=capabilities, parameters=request.parameters
        )
        return csi_pb2.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def _capabilities(
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, call: ports.Call
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        kinds = [csi_pb2.ControllerServiceCapability.RPC.CREATE_DELETE_VOLUME]
        if self._capacity is not None:
            kinds.append(csi_pb2.ControllerServiceCapability.RPC.GET_CAPACITY)
        offered = (csi_pb2.ControllerServiceCapability.RPC(type=kind) for kind in kinds)
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.ControllerServiceCapability(rpc=rpc) for rpc in offered]
        )

    def _get_capacity(self, request: csi_pb2.GetCapacityRequest, call: ports.Call) -> csi_pb2.GetCapacityResponse:
        """What this node has for a new model; nothing for other nodes, and for volumes that no model can be."""
        try:
            for capability in request.volume_capabilities:
                checks.supported(capability)
        except errors.InvalidRequest:
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        wanted = request.accessible_topology.segments
        if any(self._topology.get(key) != value for key, value in wanted.items()):
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        count = self._capacity() if self._capacity is not None else 0
        answer = csi_pb2.GetCapacityResponse(available_capacity=count)
        answer.maximum_volume_size.value = count
        return answer
