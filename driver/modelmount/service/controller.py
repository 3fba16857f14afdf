"""CSI Controller: a volume is a promise about a model. Nothing stored; the same name gives the same id."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from csi.v1 import csi_pb2
from modelmount import config, errors
from modelmount.service import checks, methods, ports


class Controller:
    """The Controller service, stateless: any number of instances may answer.

    Without state it cannot notice that a name comes again with other parameters; the provisioner's names are unique
    (`pvc-<uid>`).
    """

    def __init__(self, promises: ports.Promises, settings: config.Settings) -> None:
        self._promises = promises
        self._settings = settings

    def table(self) -> Iterable[methods.Method]:
        """Its methods; all others answer UNIMPLEMENTED."""
        return (
            methods.method(csi_pb2.CreateVolumeRequest, self._create, level=logging.INFO),
            methods.method(csi_pb2.DeleteVolumeRequest, self._delete, level=logging.INFO),
            methods.method(csi_pb2.ValidateVolumeCapabilitiesRequest, self._validate),
            methods.method(csi_pb2.ControllerGetCapabilitiesRequest, self._capabilities, instant=True),
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
        offered = csi_pb2.ControllerServiceCapability.RPC(
            type=csi_pb2.ControllerServiceCapability.RPC.CREATE_DELETE_VOLUME
        )
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.ControllerServiceCapability(rpc=offered)]
        )
