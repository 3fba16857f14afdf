"""The kubelet's plugin registration, so that no registrar sidecar is needed.

The kubelet watches its `plugins_registry` directory, connects to each socket that appears, and within a second wants
GetInfo answered; then it calls NodeGetInfo on the CSI socket, and NotifyRegistrationStatus here (kubernetes,
pkg/kubelet/pluginmanager). When the socket goes, the driver is deregistered at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import grpc

from csi.registration import registration_pb2
from csi.v1 import csi_pb2, csi_pb2_grpc
from modelmount import errors
from modelmount.service import interceptors, listener, methods, ports, sockets

log = logging.getLogger(__name__)

PLUGIN_TYPE = "CSIPlugin"
SUPPORTED_VERSIONS = ("1.0.0",)
WORKERS = 4
_ANSWER_SECONDS = 10.0


class Registration:
    """Keeps the registration socket. `start` once, then `check` now and then, then `stop`; all from one thread at a
    time.

    `on_refused` is called with the kubelet's reason when it will not have this driver; it must not block.
    """

    def __init__(
        self,
        directory: Path,
        *,
        driver_name: str,
        endpoint: str,
        csi_socket: Path,
        on_refused: Callable[[str], None],
        observe: interceptors.Observe = interceptors.record,
    ) -> None:
        self.path = directory / f"{driver_name}-reg.sock"
        self._driver_name = driver_name
        self._endpoint = endpoint
        self._csi_socket = csi_socket
        self._on_refused = on_refused
        self._observe = observe
        self._listener: listener.Listener | None = None

    def start(self) -> None:
        """Appear in the kubelet's directory, once the CSI socket answers: the kubelet calls it right away.

        Raises Unavailable when that doesn't answer, Precondition when the socket can't be made.
        """
        self._await_csi()
        self._appear()

    def check(self) -> None:
        """Make the socket again if somebody removed or replaced it; the kubelet then registers the driver anew. Logs
        what fails.
        """
        if self._listener is not None and self._listener.is_reachable():
            return
        log.warning("the registration socket %s is gone; making it again", self.path)
        self.stop(0)
        try:
            self._appear()
        except errors.ModelMountError as e:
            log.error("cannot make the registration socket again: %s", e.message)

    def stop(self, grace_seconds: float) -> None:
        """Disappear, which deregisters the driver."""
        if self._listener is not None:
            self._listener.stop(grace_seconds)
            self._listener = None

    def _appear(self) -> None:
        table = (
            methods.method(registration_pb2.InfoRequest, self._info, name="GetInfo"),
            methods.method(registration_pb2.RegistrationStatus, self._notify, name="NotifyRegistrationStatus"),
        )
        described = registration_pb2.DESCRIPTOR.services_by_name["Registration"]
        service = methods.service(described, table, observe=self._observe)
        made = listener.Listener(self.path, [service], workers=WORKERS, name="registration")
        try:
            made.start()
        except errors.ModelMountError:
            made.stop(0)
            raise
        self._listener = made

    def _await_csi(self) -> None:
        with grpc.insecure_channel(sockets.target(self._csi_socket)) as channel:
            try:
                csi_pb2_grpc.IdentityStub(channel).GetPluginInfo(
                    csi_pb2.GetPluginInfoRequest(), timeout=_ANSWER_SECONDS, wait_for_ready=True
                )
            except grpc.RpcError as e:
                raise errors.Unavailable(
                    f"the CSI socket {self._csi_socket} doesn't answer, so nothing is registered: {e.code().name}"
                ) from e

    def _info(self, request: registration_pb2.InfoRequest, call: ports.Call) -> registration_pb2.PluginInfo:
        return registration_pb2.PluginInfo(
            type=PLUGIN_TYPE, name=self._driver_name, endpoint=self._endpoint, supported_versions=SUPPORTED_VERSIONS
        )

    def _notify(
        self, request: registration_pb2.RegistrationStatus, call: ports.Call
    ) -> registration_pb2.RegistrationStatusResponse:
        if request.plugin_registered:
            log.info("the kubelet registered %s at %s", self._driver_name, self._endpoint)
        else:
            reason = errors.printable(request.error)
            log.error("the kubelet refused to register %s: %s", self._driver_name, reason)
            self._on_refused(f"the kubelet refused to register {self._driver_name}: {reason}")
        return registration_pb2.RegistrationStatusResponse()
