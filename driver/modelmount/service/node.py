"""CSI Node: publish, unpublish, stats. The fields are checked here in the specification's order; what they mean is the
publisher's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from csi.v1 import csi_pb2
from modelmount import errors
from modelmount.service import checks, gate, methods, ports

NODE_ID_BYTES = 256
"""Longest node id (CSI, NodeGetInfoResponse.node_id)."""
_OFFERED = (csi_pb2.NodeServiceCapability.RPC.GET_VOLUME_STATS, csi_pb2.NodeServiceCapability.RPC.VOLUME_CONDITION)


class Node:
    """The Node service. `waiters` publishes may be inside the publisher at once; the next one is told to come again
    (ABORTED), and so is a namespace that has its share of them.
    """

    def __init__(
        self,
        publisher: ports.Publisher,
        *,
        node_id: str,
        waiters: int,
        interrupt: Callable[[], None] = lambda: None,
        heard: Callable[[], None] = lambda: None,
        topology: Mapping[str, str] | None = None,
        namespace: Callable[[Mapping[str, str]], str] = lambda attributes: "",
    ) -> None:
        """`interrupt` wakes publishes from whatever they wait for, once they have been told to end. `heard` is called
        whenever a kubelet asks who this is: it does so when it takes the driver into use. `topology` is where this node
        lies, where that matters. `namespace` is whose a volume with these attributes is; empty where nobody knows.
        """
        if not 0 < len(node_id.encode()) <= NODE_ID_BYTES:
            raise errors.InvalidRequest(f"node_id must have 1 to {NODE_ID_BYTES} bytes")
        self._publisher = publisher
        self._node_id = node_id
        self._gate = gate.Gate(waiters)
        self._interrupt, self._heard, self._namespace = interrupt, heard, namespace
        self._topology = dict(topology or {})

    def table(self) -> Iterable[methods.Method]:
        """Its methods; all others answer UNIMPLEMENTED."""
        return (
            methods.method(csi_pb2.NodePublishVolumeRequest, self._publish),
            methods.method(csi_pb2.NodeUnpublishVolumeRequest, self._unpublish, level=logging.INFO),
            methods.method(csi_pb2.NodeGetVolumeStatsRequest, self._stats),
            methods.method(csi_pb2.NodeGetCapabilitiesRequest, self._capabilities, instant=True),
            methods.method(csi_pb2.NodeGetInfoRequest, self._info, instant=True),
        )

    def drain(self, patience_seconds: float) -> bool:
        """Take no more publishes, end the waiting ones, unpublish as ever; False when a publish is still inside after
        that time.
        """
        self._gate.close()
        self._interrupt()
        return self._gate.wait_empty(patience_seconds)

    def _publish(
        self, request: csi_pb2.NodePublishVolumeRequest, call: ports.Call
    ) -> csi_pb2.NodePublishVolumeResponse:
        volume_id = checks.volume_id(request.volume_id)
        target_path = checks.required(request.target_path, "target_path")
        if not request.HasField("volume_capability"):
            raise errors.InvalidRequest("the request names no volume_capability")
        wanted = ports.PublishRequest(
            volume_id=volume_id,
            target_path=target_path,
            attributes=dict(request.volume_context),
            secrets=dict(request.secrets),
            mount_flags=checks.supported(request.volume_capability),
            readonly=request.readonly,
        )
        with self._gate.enter(call, self._namespace(wanted.attributes)):
            self._publisher.publish(wanted, call)
        return csi_pb2.NodePublishVolumeResponse()

    def _unpublish(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, call: ports.Call
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        volume_id = checks.volume_id(request.volume_id)
        self._publisher.unpublish(volume_id, checks.required(request.target_path, "target_path"))
        return csi_pb2.NodeUnpublishVolumeResponse()

    def _stats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, call: ports.Call
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        volume_id = checks.volume_id(request.volume_id)
        stats = self._publisher.stats(volume_id, checks.required(request.volume_path, "volume_path"))
        # total is not just the model's size: with nothing available, the usual alert "volume is filling up" would fire.
        usage = [
            csi_pb2.VolumeUsage(unit=unit, used=used, available=available, total=used + available)
            for unit, used, available in (
                (csi_pb2.VolumeUsage.BYTES, stats.used_bytes, stats.available_bytes),
                (csi_pb2.VolumeUsage.INODES, stats.used_inodes, stats.available_inodes),
            )
        ]
        condition = csi_pb2.VolumeCondition(abnormal=stats.abnormal, message=stats.message)
        return csi_pb2.NodeGetVolumeStatsResponse(usage=usage, volume_condition=condition)

    def _capabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, call: ports.Call
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[
                csi_pb2.NodeServiceCapability(rpc=csi_pb2.NodeServiceCapability.RPC(type=offered))
                for offered in _OFFERED
            ]
        )

    def _info(self, request: csi_pb2.NodeGetInfoRequest, call: ports.Call) -> csi_pb2.NodeGetInfoResponse:
        self._heard()
        answer = csi_pb2.NodeGetInfoResponse(node_id=self._node_id)
        if self._topology:  # else none: every node can pull
            answer.accessible_topology.segments.update(self._topology)
        return answer
