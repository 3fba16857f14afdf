"""What a start does before it serves: records and mounts are brought together, debris goes. No network; nothing is
unmounted, and no lease of a pod ends here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelmount.config import Settings
from modelmount.content import debris
from modelmount.content.store import Store
from modelmount.errors import InvalidRequest, ModelMountError
from modelmount.snapshots import tree as trees
from modelmount.system import atomic, host
from modelmount.system.lock import LockTimeout
from modelmount.system.target import Location, TargetRoots
from modelmount.volumes import kubelet, ours
from modelmount.volumes.leases import NAMELESS, Lease, Leases, prepare_locks, target_lock_name
from modelmount.volumes.ours import TreeMount
from modelmount.volumes.standing import Standing

log = logging.getLogger(__name__)

LOCK_SECONDS = 5.0
"""Patience with a command line that works on a target right now: what it leaves needs no recovery."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a start found. `live` publications have their mount, `waiting` ones get it when they are published again,
    `adopted` ones had no lease; `ended` leases were of nobody any more; `cleared` half-made things are gone.
    """

    live: int
    waiting: int
    adopted: int
    ended: int
    cleared: int


def recover(store: Store, settings: Settings) -> Recovered:
    """Bring the store and this namespace's mounts together. For the holder of the `driver` lock, before it serves; a
    command line may be at work at the same time. Raises OSError only where the store can't be read at all.
    """
    return _Recovery(store, settings).run()


class _Recovery:
    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._leases = Leases(store)
        self._anywhere = TargetRoots([Path("/")])
        self._mounted = ours.tree_mounts(store.root)
        self._live = self._waiting = self._adopted = self._ended = 0

    def run(self) -> Recovered:
        prepare_locks(self._store)
        torn = self._leases.clear_torn()  # before mounts without a lease are adopted
        leases = list(self._leases.walk())
        recorded = {lease.target for lease in leases}
        for lease in leases:
            with _surviving(lease.target):
                self._reconcile(lease)
        roots = TargetRoots(self._settings.publish_roots)
        for mount_point in self._mounted.keys() - recorded:
            try:
                location = roots.locate(mount_point)
            except InvalidRequest:
                continue  # a person's own; leases of the command line are that command's business
            with _surviving(mount_point):
                self._adopt(location, self._mounted[mount_point])
        atomic.failpoint("volumes.recovery.before_clear")
        return Recovered(self._live, self._waiting, self._adopted, self._ended, torn + self._clear())

    def _reconcile(self, lease: Lease) -> None:
        self._waiting += 1  # until we know better: whatever fails below, the lease stays
        now = self._look(lease)
        shown = self._mounted.get(lease.target)
        if now.live or (shown is not None and shown.tree == lease.tree and now.state.identity is not None):
            self._waiting -= 1
            self._live += 1
            self._keep(now, lease)
        elif self._is_over(now, lease):
            self._end(lease)

    def _keep(self, now: Standing, lease: Lease) -> None:
        """Write down where the living mount of a lease is seen from now. A person's own lease keeps the namespace that
        decides over its end.
        """
        identity = now.state.identity
        assert identity is not None
        namespace = host.mount_namespace() if lease.owner == "csi" else lease.mount_namespace
        seen = msgspec.structs.replace(
            lease,
            boot_id=host.boot_id(),
            mount_namespace=namespace,
            device=identity.device,
            inode=identity.inode,
        )
        if seen == lease:
            self._leases.settle(lease)  # its maker was killed before it could, perhaps
            return
        with self._locked(lease.target) as mine:
            if mine and self._leases.read(lease.volume_id, lease.target) == lease:
                with self._store.locks.shared():
                    self._leases.write(seen)

    def _is_over(self, now: Standing, lease: Lease) -> bool:
        return now.ended or (lease.is_nameless and not lease.in_this_boot)

    def _end(self, lease: Lease) -> None:
        with self._locked(lease.target) as mine:
            if not mine or self._leases.read(lease.volume_id, lease.target) != lease:
                return
            if self._is_over(self._look(lease), lease):
                self._leases.remove(lease.volume_id, lease.target)
                self._waiting -= 1
                self._ended += 1

    def _adopt(self, location: Location, shown: TreeMount) -> None:
        """Give a mount of ours below the target roots a lease, so that its tree stays and its unpublish works."""
        path = location.path
        if not path.isprintable():
            log.error("one of our trees is mounted at %r; no kubelet names that, unmount it", path)
            return
        with self._locked(path) as mine:
            identity = self._anywhere.state(path).identity
            if not mine or identity is None or self._leases.of_target(path):
                return
            with self._store.locks.shared():
                tree = trees.load(self._store, shown.tree) if shown.in_place else None
                lease = Lease(
                    volume_id=kubelet.volume_id(path, self._settings.driver_name) or _nameless(path),
                    target=path,
                    attributes={},
                    reference="",
                    registry="",
                    repository="",
                    manifest="",
                    pod_uid=kubelet.pod_uid(location),
                    owner="csi",
                    tree=shown.tree,
                    bytes=tree.bytes if tree else 0,
                    files=tree.files if tree else 0,
                    boot_id=host.boot_id(),
                    mount_namespace=host.mount_namespace(),
                    device=identity.device,
                    inode=identity.inode,
                    adopted=True,
                )
                self._leases.write(lease)
        log.warning("adopted a mount without a lease", extra={"fields": {"target": path, "volume": lease.volume_id}})
        self._adopted += 1

    def _clear(self) -> int:
        try:
            used = {tree.name for tree in ours.trees_in_use(self._store.root)}
            return debris.clear(self._store, sparing=used)
        except OSError:
            # What can't be deleted wastes space; the volumes work all the same.
            log.exception("debris of earlier runs could not be removed")
            return 0

    def _look(self, lease: Lease) -> Standing:
        return Standing(lease.target, lease, self._anywhere.state(lease.target))

    @contextmanager
    def _locked(self, path: str) -> Iterator[bool]:
        """Whether we hold the target's lock inside the block."""
        try:
            held = self._store.lock(target_lock_name(path)).acquire(timeout=LOCK_SECONDS)
        except LockTimeout:
            log.warning("somebody is working on target %s; it is left to them", path)
            yield False
            return
        with held:
            yield True


@contextmanager
def _surviving(target: str) -> Iterator[None]:
    """One target's trouble (a link on the way, a full disk) doesn't keep the driver from starting."""
    try:
        yield
    except (ModelMountError, OSError):
        log.exception("could not bring the lease and the mount of %s together", target)


def _nameless(path: str) -> str:
    return NAMELESS + hashlib.sha256(path.encode()).hexdigest()[:40]
