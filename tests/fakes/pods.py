"""What an API server would tell a kubelet, as far as CSI volumes go, and the request that comes of it."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from csi.v1 import csi_pb2
from tests.fakes import hunt

POD_INFO = "csi.storage.k8s.io/"

_MODE = csi_pb2.VolumeCapability.AccessMode
_ACCESS_MODES = {
    "ReadWriteOnce": _MODE.SINGLE_NODE_WRITER,
    "ReadOnlyMany": _MODE.MULTI_NODE_READER_ONLY,
    "ReadWriteMany": _MODE.MULTI_NODE_MULTI_WRITER,
    "ReadWriteOncePod": _MODE.SINGLE_NODE_WRITER,
}
"""For a driver without SINGLE_NODE_MULTI_WRITER: the new single-node modes fall back to SINGLE_NODE_WRITER."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A bound PersistentVolume behind a pod's volume: its name, handle, and first access mode."""

    name: str
    handle: str
    access_mode: str = "ReadOnlyMany"
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Volume:
    """A CSI volume of a pod: inline, or a PersistentVolume where `claim` is set. `secret` names a Secret in the pod's
    namespace.
    """

    name: str
    attributes: Mapping[str, str]
    driver: str = "csi.modelmount.io"
    read_only: bool = True
    secret: str | None = None
    fs_type: str = ""
    claim: Claim | None = None

    @property
    def spec_name(self) -> str:
        """The directory's name: the volume's for inline ones, the PersistentVolume's otherwise."""
        return self.claim.name if self.claim else self.name

    def handle(self, pod_uid: str) -> str:
        """The CSI volume id; the kubelet makes one up for an inline volume."""
        return self.claim.handle if self.claim else f"csi-{hashlib.sha256((pod_uid + self.name).encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod on this node; the uid is made up unless given."""

    name: str
    volumes: tuple[Volume, ...]
    namespace: str = "default"
    service_account: str = "default"
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))


def publish_request(
    pod: Pod, volume: Volume, target: Path, secrets: Mapping[str, str], *, pod_info: bool = True
) -> csi_pb2.NodePublishVolumeRequest:
    """What the kubelet sends; with `pod_info`, its own keys override what the user wrote under the same names."""
    context = dict(volume.attributes)
    if pod_info:
        context[POD_INFO + "pod.name"] = pod.name
        context[POD_INFO + "pod.namespace"] = pod.namespace
        context[POD_INFO + "pod.uid"] = pod.uid
        context[POD_INFO + "serviceAccount.name"] = pod.service_account
        context[POD_INFO + "ephemeral"] = "false" if volume.claim else "true"
    hunt.plant_volume(secrets, context)
    mode = _ACCESS_MODES[volume.claim.access_mode] if volume.claim else _MODE.SINGLE_NODE_WRITER
    flags = volume.claim.mount_options if volume.claim else ()
    capability = csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(fs_type=volume.fs_type, mount_flags=flags),
        access_mode=csi_pb2.VolumeCapability.AccessMode(mode=mode),
    )
    return csi_pb2.NodePublishVolumeRequest(
        volume_id=volume.handle(pod.uid),
        target_path=str(target),
        volume_capability=capability,
        readonly=volume.read_only,
        secrets=secrets,
        volume_context=context,
    )


def volume_data(node: str, driver: str, volume: Volume, handle: str) -> dict[str, str]:
    """The content of vol_data.json, the kubelet's own record of a mount. There is no volume context in it."""
    return {
        "attachmentID": f"csi-{hashlib.sha256(f'{handle}{driver}{node}'.encode()).hexdigest()}",
        "driverName": driver,
        "nodeName": node,
        "seLinuxMountContext": "",
        "specVolID": volume.spec_name,
        "volumeHandle": handle,
        "volumeLifecycleMode": "Persistent" if volume.claim else "Ephemeral",
    }
