"""How a publication stands: what its lease says and what is at its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from modelmount.errors import Conflict, InvalidRequest
from modelmount.system import host, mount
from modelmount.system.mount import Identity
from modelmount.system.target import TargetRoots, TargetState
from modelmount.volumes.leases import Lease, Leases
from modelmount.volumes.volume import VolumeSpec


@dataclass(frozen=True, slots=True)
class Standing:
    """One look at a publication.

    `lease` is the volume's own, or that of a mount of which nobody knows whose it is. `rival` is another volume's lease
    on what is mounted there.
    """

    path: str
    lease: Lease | None
    state: TargetState
    rival: Lease | None = None

    @property
    def live(self) -> bool:
        """Whether the lease's own mount is at the target."""
        lease = self.lease
        return lease is not None and lease.in_this_boot and self.shows(Identity(lease.device, lease.inode))

    @property
    def ended(self) -> bool:
        """Whether a lease of the command line is over: it is of another boot, or its mount is gone from the namespace
        it was made in. Leases of pods end by an unpublish, or as
        `volumes.vanished` says.
        """
        lease = self.lease
        if lease is None or lease.owner != "cli" or self.live:
            return False
        return not lease.in_this_boot or lease.mount_namespace == host.mount_namespace()

    @property
    def binding(self) -> Lease | None:
        """The lease that decides what a publish shows."""
        return None if self.ended else self.lease

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing yet, neither recorded nor at the target."""
        return self.lease is None and self.state.kind == "missing"

    @property
    def is_dead_mount(self) -> bool:
        """Whether there is a mount that doesn't even say what it is (ENOTCONN, ESTALE)."""
        return self.state.kind == "mount" and self.state.identity is None

    def shows(self, identity: Identity) -> bool:
        """Whether the topmost mount at the target is of this directory."""
        return self.state.kind == "mount" and self.state.identity == identity

    def obstacle(self) -> str:
        """The sentence about a mount that isn't this volume's."""
        if self.rival is not None:
            return f"another volume, {self.rival.volume_id!r}, is published at target {self.path!r}; unpublish it first"
        return f"something that isn't ours is mounted on target {self.path!r}; unmount it"


def look(leases: Leases, targets: TargetRoots, volume_id: str, path: str) -> Standing:
    """What stands now, in a handful of system calls; only a mount without this volume's lease costs a scan of leases.

    `path` as `targets.locate` spells it. Raises Precondition for a symbolic link on the way to it.
    """
    lease = leases.read(volume_id, path)
    state = targets.state(path)
    if lease is not None or state.kind != "mount":
        return Standing(path, lease, state)
    others = leases.of_target(path)
    nameless = next((other for other in others if other.is_nameless), None)
    return Standing(path, nameless, state, next((other for other in others if not other.is_nameless), None))


def trouble(now: Standing, root: Path) -> str:
    """What is wrong with a publication, for its pod's owner; empty when nothing is. `root` is its tree's place."""
    lease = now.lease
    if lease is None or not now.live:
        return "the model's mount is gone; it is made again when the kubelet publishes the volume again"
    try:
        in_place = mount.identity(root) == Identity(lease.device, lease.inode)
    except FileNotFoundError:
        in_place = False
    if in_place:
        return ""
    return (
        "the model's files were put into quarantine, because some of their bytes went bad on this node's disk; "
        "recreate the pod to get good ones"
    )


def require_same(lease: Lease | None, attributes: Mapping[str, str], spec: VolumeSpec) -> None:
    """Raise Conflict unless the lease was written for these attributes, or for others that mean the same.

    Of an adopted lease nobody knows what was asked for; a volume's attributes never change, so it is this. A person may
    say anew how to come to the model that is shown.
    """
    if lease is None or lease.adopted or lease.attributes == attributes:
        return
    try:
        shown = VolumeSpec.parse(lease.attributes)
        same = shown == (spec if lease.owner == "csi" else replace(spec, pull_policy=shown.pull_policy))
    except InvalidRequest:  # an older version took them, this one doesn't
        same = False
    if not same:
        raise Conflict(
            f"the volume is published at {lease.target!r} already, as {lease.reference} with other attributes; "
            "unpublish it first"
        )
