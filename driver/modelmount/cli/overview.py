"""How a node stands, looked at from outside: the store's names, the kernel's tables, the kubelet's records. A driver is
not asked, so that all of it is known while none runs; no network, and nothing of the store is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelmount.cache import bounds as limits
from modelmount.cache import ground, quarantine, scrub
from modelmount.cache import shelf as shelves
from modelmount.cache.bounds import Account, Bounds
from modelmount.cache.shelf import Shelf
from modelmount.config import Settings
from modelmount.content import asides, backoff, pulls
from modelmount.content.pulls import Claim
from modelmount.content.store import Store
from modelmount.errors import ModelMountError
from modelmount.pull import resolver, verdicts
from modelmount.system import disk, host, lock, mountinfo
from modelmount.system.target import TargetRoots
from modelmount.volumes import kubelet, standing
from modelmount.volumes.leases import Lease


@dataclass(frozen=True, slots=True)
class Pull:
    """A live pull of any process. `phase` is as far as the disk tells: `resolving`; `making room`; `pulling`;
    `verifying`, which unpacking is too; `here`, until a pod has it. Bytes are those on the disk. `holder` as
    `lock.holder` says.
    """

    model: str
    namespace: str
    phase: str
    done: int
    total: int
    holder: int | None


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """A publication that doesn't show what it should."""

    volume_id: str
    pod_uid: str
    target: str
    trouble: str


@dataclass(frozen=True, slots=True)
class Volumes:
    """The publications: how many are in which state, which are unhealthy, and what the kubelet still waits for."""

    states: Mapping[str, int]
    unhealthy: tuple[Unhealthy, ...]
    waiting: tuple[kubelet.Wanted, ...]

    @property
    def count(self) -> int:
        """All of them; what is waited for has no publication yet."""
        return sum(self.states.values())


@dataclass(frozen=True, slots=True)
class Overview:
    """One look."""

    driver: int | None
    """Who holds the store, as `lock.holder` says."""
    file_system: str
    total: int
    disk_free: int
    bounds: Bounds
    short_inodes: int
    account: Account
    evictable: int
    held: Mapping[str, int]
    models: int
    pulls: tuple[Pull, ...]
    volumes: Volumes
    scrub: scrub.Place
    quarantine: tuple[quarantine.Entry, ...]
    bars: tuple[backoff.Bar, ...]
    asides: tuple[asides.Aside, ...]
    warnings: tuple[ground.Trouble, ...]


def look(settings: Settings) -> Overview:
    """Look now; a store that isn't there has nothing in it and isn't made. Raises Precondition where it can't be used,
    OSError.
    """
    root = Path(settings.root)
    place = ground.nearest(root)
    there = msgspec.structs.replace(settings, root=str(place))
    bounds = limits.read(there)
    shelf = shelves.existing(settings, to_look=True)
    plan = None if shelf is None else shelf.collector.plan(0)
    reserved = 0 if shelf is None else pulls.outstanding_bytes(shelf.store)
    entry = mountinfo.mount_of(place)
    free = disk.free_bytes(place)
    return Overview(
        driver=lock.holder(root / "locks/driver"),
        file_system="" if entry is None else entry.fstype,
        total=bounds.total,
        disk_free=free,
        bounds=bounds,
        short_inodes=limits.short_inodes(there, bounds),
        account=Account.of(bounds, free, 0 if plan is None else plan.used, reserved),
        evictable=0 if plan is None else plan.evictable,
        held={} if plan is None else {str(reason): count for reason, count in plan.held.items() if count},
        models=0 if shelf is None else sum(1 for _ in verdicts.pulled_models(shelf.store)),
        pulls=() if shelf is None else tuple(_pulls(shelf.store)),
        volumes=_volumes(settings, shelf),
        scrub=scrub.Place() if shelf is None else scrub.read_place(shelf.store),
        quarantine=() if shelf is None else tuple(quarantine.entries(shelf.store)),
        bars=() if shelf is None else tuple(backoff.standing(shelf.store)),
        asides=() if shelf is None else tuple(asides.standing(shelf.store)),
        warnings=tuple(ground.troubles(settings)),
    )


def _pulls(store: Store) -> Iterator[Pull]:
    names = {known.manifest.partition(":")[2]: known.reference for _, known in resolver.references(store)}
    for pull_id, claims in sorted(pulls.live_records(store), key=lambda each: each[0]):
        done, total, complete = pulls.come(store, claims)
        phase = _phase(claims, complete=complete, arrived=done >= total)
        whole = next((claim.hex for claim in claims if claim.form == pulls.MANIFEST), "")
        holder = lock.holder(store.root / f"locks/pull-{pull_id}")
        yield Pull(names.get(whole, whole), pulls.namespace_of(claims), phase, done, total, holder)


def _phase(claims: list[Claim], *, complete: bool, arrived: bool) -> str:
    content = [claim for claim in claims if claim.form != pulls.MANIFEST]
    if not content:
        return "resolving"
    if complete:
        return "here"
    if not any(claim.size for claim in content):
        return "making room"
    return "verifying" if arrived else "pulling"


def _volumes(settings: Settings, shelf: Shelf | None) -> Volumes:
    targets = {"csi": TargetRoots(settings.publish_roots), "cli": TargetRoots([Path("/")])}
    states: Counter[str] = Counter()
    unhealthy, published = [], set()
    for lease in () if shelf is None else shelf.leases.walk():
        assert shelf is not None
        published.add((lease.volume_id, lease.target))
        state, trouble = _state(shelf, targets[lease.owner], lease)
        if state:
            states[state] += 1
        if trouble:
            unhealthy.append(Unhealthy(lease.volume_id, lease.pod_uid, lease.target, trouble))
    waiting = [
        each
        for each in kubelet.wanted(settings.publish_roots, settings.driver_name)
        if (each.volume_id, targets["csi"].locate(each.target).path) not in published
    ]
    return Volumes(dict(sorted(states.items())), tuple(unhealthy), tuple(waiting))


def _state(shelf: Shelf, targets: TargetRoots, lease: Lease) -> tuple[str, str]:
    """`mounted`; `not mounted`, since a reboot, until the kubelet publishes it again; `elsewhere`, in a mount namespace
    that isn't this process's; `unhealthy`, and what is wrong. Empty for one that is over.
    """
    try:
        now = standing.look(shelf.leases, targets, lease.volume_id, lease.target)
    except ModelMountError as e:
        return "unhealthy", e.message
    if now.lease is None or now.ended:
        return "", ""
    if not lease.in_this_boot:
        return "not mounted", ""
    if not now.live and lease.mount_namespace != host.mount_namespace():
        return "elsewhere", ""
    trouble = standing.trouble(now, shelf.leases.tree_root(lease))
    return ("unhealthy", trouble) if trouble else ("mounted", "")
