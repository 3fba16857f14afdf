"""What a kubelet keeps on disk for CSI volumes, made and removed its way: `vol_data.json`, one rmdir at a time, never
recursively.

Rules read from Kubernetes 1.34 to 1.36: `saveVolumeData`, `removeMountDir`, `MountDevice` in `pkg/volume/csi`, and the
pod housekeeping.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fakes import mounts

ANYTHING_GOES = """\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%"}
"""
"""A kubelet that neither deletes images nor evicts pods, however full the disk of whoever runs the tests is."""


def write_config(root: Path, text: str = ANYTHING_GOES) -> None:
    """The kubelet's configuration, where kubeadm puts it."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(text)


class StillMountedError(Exception):
    """The kubelet leaves a mounted target, its record and its parent alone: a pod directory that stays for ever."""


@dataclass(frozen=True, slots=True)
class Found:
    """A volume as a restarted kubelet finds it; there is no volume context in the record."""

    pod_uid: str
    name: str
    driver: str
    handle: str


@dataclass(frozen=True, slots=True)
class Directories:
    """The kubelet's root directory."""

    root: Path

    def volume(self, pod_uid: str, name: str) -> Path:
        """The parent of a target; `name` is the inline volume's or the PersistentVolume's."""
        return self.root / "pods" / pod_uid / "volumes/kubernetes.io~csi" / name

    def prepare(self, pod_uid: str, name: str, record: dict[str, str]) -> None:
        """What exists before the driver is called: parent directories, 0750, and the record; never the target."""
        volume = self.volume(pod_uid, name)
        for directory in reversed([volume, *volume.parents]):
            directory.mkdir(mode=0o750, exist_ok=True)
        if record["volumeLifecycleMode"] == "Persistent":
            self._global_mount(record["driverName"], record["volumeHandle"]).mkdir(0o750, parents=True, exist_ok=True)
        (volume / "vol_data.json").write_text(json.dumps(record))

    def reconstruct(self) -> Iterator[Found]:
        """Every volume that has a record."""
        for file in sorted(self.root.glob("pods/*/volumes/kubernetes.io~csi/*/vol_data.json")):
            record = json.loads(file.read_bytes())
            yield Found(file.parts[-5], file.parts[-2], record["driverName"], record["volumeHandle"])

    def remove_volume(self, pod_uid: str, name: str) -> None:
        """Target, record, parent, one by one. Raises StillMountedError, or OSError when something is in the way."""
        volume = self.volume(pod_uid, name)
        target = volume / "mount"
        if mounts.is_mounted(target):
            raise StillMountedError(f"{target} is still mounted, so its directories stay")
        for remove in (target.rmdir, (volume / "vol_data.json").unlink, volume.rmdir):
            try:
                remove()
            except FileNotFoundError:
                pass  # never made, or removed by the driver as it should

    def remove_device(self, driver: str, handle: str) -> None:
        """The directory that a PersistentVolume gets also without NodeStageVolume, after its last use."""
        _remove_if_empty(self._global_mount(driver, handle))
        _remove_if_empty(self._global_mount(driver, handle).parent)

    def remove_pod(self, pod_uid: str) -> None:
        """The housekeeping after a pod's last volume: empty directories only."""
        top = self.root / "pods" / pod_uid
        for directory in (top / "volumes/kubernetes.io~csi", top / "volumes", top):
            _remove_if_empty(directory)

    def leftovers(self, live: set[str]) -> list[str]:
        """Directories of pods that are not `live`, and mounts below them."""
        top = self.root / "pods"
        found = [p for p in (top.iterdir() if top.exists() else ()) if p.name not in live]
        found += [m for m in mounts.below(top) if m != top and m.relative_to(top).parts[0] not in live]
        return [str(path) for path in found]

    def _global_mount(self, driver: str, handle: str) -> Path:
        name = hashlib.sha256(handle.encode()).hexdigest()
        return self.root / "plugins/kubernetes.io/csi" / driver / name / "globalmount"


def _remove_if_empty(directory: Path) -> None:
    if directory.exists() and not any(directory.iterdir()):
        directory.rmdir()
