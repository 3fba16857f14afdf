"""A driver under measurement, spoken to as the kubelet does, over one connection that stays."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from bench import calls
from bench.processes import FailedError
from csi.v1 import csi_pb2, csi_pb2_grpc
from tests.fakes import mounts
from tests.fakes.driver import Driver, Host
from tests.fakes.plugins import connect, outcome
from tests.fakes.pods import Pod, Volume, publish_request

CALL_SECONDS = 120.0
"""The kubelet's deadline."""


class Node:
    """One driver with a store of its own in `directory`, from `with` to its end; then nothing of it is left, unless
    `discard` does something else with the directory. One thread at a time.
    """

    def __init__(
        self,
        directory: Path,
        registry: Host,
        settings: Mapping[str, Any] | None = None,
        discard: Callable[[Path], None] = shutil.rmtree,
    ) -> None:
        self.directory, self._discard = directory, discard
        self.driver = Driver(directory, [registry], settings={"log_level": "warning", **(settings or {})})
        self._channel: grpc.Channel | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        try:
            self.driver.start()
        except BaseException:
            self.__exit__()
            raise
        self._channel = connect(str(self.driver.socket))
        return self

    def __exit__(self, *exc: object) -> None:
        if self._channel is not None:
            self._channel.close()
        self.driver.kill()
        mounts.detach_below(self.directory)
        self._discard(self.directory)

    def start_again(self) -> None:
        """The driver on what is left in its store, over a new connection, after somebody killed it."""
        if self._channel is not None:
            self._channel.close()
        self.driver.start()
        self._channel = connect(str(self.driver.socket))

    def target(self, pod: Pod) -> Path:
        """Where the pod's volume is mounted."""
        return self.driver.target(pod.uid)

    def publish(self, pod: Pod) -> float:
        """Publish the pod's volume; the seconds it took. While its pull goes on (ABORTED) it is called again. Raises
        FailedError.
        """
        target = self.target(pod)
        target.parent.mkdir(parents=True, exist_ok=True)
        request = publish_request(pod, pod.volumes[0], target, {})
        started = time.perf_counter()
        while True:
            try:
                self._stub.NodePublishVolume(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                code, message = outcome(error)
                if code is not grpc.StatusCode.ABORTED:
                    raise FailedError(f"the driver answers {code.name}: {message}") from error
            else:
                return time.perf_counter() - started

    def unpublish(self, pod: Pod) -> float:
        """Unpublish it; the seconds it took."""
        request = self._unpublish_request(pod)
        started = time.perf_counter()
        self._stub.NodeUnpublishVolume(request, timeout=CALL_SECONDS)
        return time.perf_counter() - started

    def come(self, pods: Sequence[Pod]) -> list[float]:
        """For each pod a publish, and a call that does nothing, by a caller like the kubelet; the seconds of all of
        them, in this order. Raises FailedError, MissingError.
        """
        every: list[tuple[str, Message]] = []
        for pod in pods:
            target, volume = self.target(pod), pod.volumes[0]
            target.parent.mkdir(parents=True, exist_ok=True)
            every += [
                ("NodePublishVolume", publish_request(pod, volume, target, {})),
                ("NodeGetInfo", csi_pb2.NodeGetInfoRequest()),
            ]
        return calls.make(self.driver.socket, every)

    def go(self, pods: Sequence[Pod]) -> list[float]:
        """Each pod's unpublish, by a caller like the kubelet; the seconds of all. Raises FailedError, MissingError."""
        return calls.make(self.driver.socket, [("NodeUnpublishVolume", self._unpublish_request(pod)) for pod in pods])

    def _unpublish_request(self, pod: Pod) -> csi_pb2.NodeUnpublishVolumeRequest:
        handle = pod.volumes[0].handle(pod.uid)
        return csi_pb2.NodeUnpublishVolumeRequest(volume_id=handle, target_path=str(self.target(pod)))

    @property
    def _stub(self) -> csi_pb2_grpc.NodeStub:
        if self._channel is None:
            raise RuntimeError("the node does not run")
        return csi_pb2_grpc.NodeStub(self._channel)


def pod(name: str, reference: str) -> Pod:
    """A pod with the model as its only volume."""
    return Pod(name, (Volume("model", {"model": reference}),))
