"""Leases of pods that vanished while nobody told the driver: their directory was removed, not unpublished, for it was
away, or the kubelet's directory was made anew. And mounts that the kubelet has no record of any more: it can neither
unpublish such a one nor remove its pod's directory, though the pod is gone.

Such a lease would hold its model for ever, and such a mount the directory. Both end once it has been so for a grace
time, at every look in between too. A lease never ends on doubt: not while the kernel shows its mount, nor where its
mount could be out of sight, nor where it can't be told that these are the kubelet's pods. A mount may go earlier:
containers have clones of their own.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from modelmount.content.store import Store
from modelmount.errors import InvalidRequest, ModelMountError
from modelmount.system import host
from modelmount.system.lock import LockTimeout
from modelmount.system.target import Location, TargetRoots
from modelmount.volumes import kubelet, ours
from modelmount.volumes.leases import KnownLeases, Lease, Leases, target_lock_name
from modelmount.volumes.standing import Standing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look did: `ended` leases are gone; the next becomes due in `again_seconds`, infinite where none will."""

    ended: int
    again_seconds: float


class Vanished:
    """Looks again and again, and remembers since when a pod or a record has been missing; a new process begins anew.
    One thread.

    `heard` says whether a kubelet has spoken to this process: before, nothing ends, for the kubelet's directory may not
    be the right one yet.
    """

    def __init__(
        self,
        store: Store,
        publish_roots: tuple[Path, ...],
        heard: Callable[[], bool],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is looked at yet."""
        self._store, self._heard, self._now = store, heard, now
        self._leases, self._roots = Leases(store), TargetRoots(publish_roots)
        self._known: KnownLeases = {}
        self._missing_since: dict[tuple[str, str], float] = {}
        self._doubt = ""

    def look(self, grace_seconds: float) -> Looked:
        """Look at every pod's lease, and end those that are due. Raises OSError where the store can't be read."""
        doubts: set[str] = set()
        missing: dict[tuple[str, str], float] = {}
        ended, again = 0, math.inf
        for lease in self._leases.walk_again(self._known):
            if lease.owner != "csi" or not self._is_lost(lease, doubts):
                continue
            key = (lease.volume_id, lease.target)
            since = self._missing_since.get(key, self._now())
            left = since + grace_seconds - self._now()
            if key in self._missing_since and left <= 0 and self._heard() and self._end(lease, doubts):
                ended += 1
                continue
            missing[key] = since
            if left > 0:
                again = min(again, left)
        self._missing_since = missing
        self._tell(doubts)
        return Looked(ended, again)

    def _is_lost(self, lease: Lease, doubts: set[str]) -> bool:
        """Whether the directory of the lease's pod is gone, or the kubelet's record of a mount that is there; for
        sure.
        """
        try:
            location = self._roots.locate(lease.target)
        except InvalidRequest:
            return False  # the roots were changed since; its pod is out of sight
        pod = kubelet.pod_uid(location)
        if not pod or location.root is None:
            return False
        try:
            os.stat(location.root / pod, follow_symlinks=False)
        except FileNotFoundError:
            return self._is_the_kubelets(location, doubts)
        except OSError as e:
            doubts.add(f"{location.root / pod} cannot be looked at: {e.strerror}")
            return False
        return not kubelet.has_record(lease.target) and self._is_live(lease, doubts)

    def _is_live(self, lease: Lease, doubts: set[str]) -> bool:
        """Whether the lease's own mount, and nothing over it, is at the target."""
        try:
            return Standing(lease.target, lease, self._roots.state(lease.target)).live
        except ModelMountError as e:
            doubts.add(e.message)
            return False

    def _is_the_kubelets(self, location: Location, doubts: set[str]) -> bool:
        """Whether other pods are there, by the directory that the kubelet makes for their volumes. Where there is none,
        its file system may not be mounted yet, or anew.
        """
        assert location.root is not None
        try:
            with os.scandir(location.root) as entries:
                if any(os.path.isdir(f"{entry.path}/volumes") for entry in entries):
                    return True
            doubts.add(f"there is no pod at all in {location.root}")
        except OSError as e:
            doubts.add(f"{location.root} cannot be read: {e.strerror}")
        return False

    def _end(self, lease: Lease, doubts: set[str]) -> bool:
        """End it, if everything is still so under the target's lock."""
        try:
            held = self._store.lock(target_lock_name(lease.target)).acquire(timeout=0)
        except LockTimeout:
            return False  # somebody works there
        with held:
            if self._leases.read(lease.volume_id, lease.target) != lease or not self._is_lost(lease, doubts):
                return False
            fields = {"volume": lease.volume_id, "target": lease.target, "model": lease.manifest, "pod": lease.pod_uid}
            if self._is_live(lease, doubts) and self._take_down(lease, doubts):
                log.warning("the kubelet has no record of a mount any more; it is unmounted", extra={"fields": fields})
            if self._may_be_mounted(lease, doubts):
                return False
            self._leases.remove(lease.volume_id, lease.target)
        log.warning("a pod vanished without an unpublish; its lease ends", extra={"fields": fields})
        return True

    def _take_down(self, lease: Lease, doubts: set[str]) -> bool:
        """Unmount it and remove its directory, so that the kubelet can remove the pod's."""
        try:
            self._roots.unmount_target(lease.target)
            self._roots.remove_target(lease.target)
        except ModelMountError as e:
            doubts.add(e.message)
            return False
        return True

    def _may_be_mounted(self, lease: Lease, doubts: set[str]) -> bool:
        """Whether the kernel shows a mount of the lease, or may hide one: containers keep clones of their own, in mount
        namespaces that can be seen only where all processes can.
        """
        try:
            if self._roots.state(lease.target).kind != "missing":
                return True
        except ModelMountError as e:
            doubts.add(e.message)
            return True
        if not lease.in_this_boot:
            return False
        if not host.sees_all_processes():
            doubts.add("containers can't be seen from here (hostPID), and may use the models until this boot ends")
            return True
        return PurePath(lease.tree).name in {tree.name for tree in ours.trees_in_use(self._store.root)}

    def _tell(self, doubts: set[str]) -> None:
        """Why leases of missing pods stay, whenever that changes."""
        said = "; ".join(sorted(doubts))
        if said and said != self._doubt:
            log.warning("pods are missing, but their leases stay: %s", said)
        self._doubt = said
