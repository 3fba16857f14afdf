"""Leases of the command line that are over though nobody said so: their boot is, or their mount is gone from the
namespace it was made in. Leases of pods don't end here (`volumes.vanished`).
"""

from __future__ import annotations

import logging
from pathlib import Path

from modelmount.content.store import Store
from modelmount.errors import ModelMountError
from modelmount.system.lock import LockTimeout
from modelmount.system.target import TargetRoots
from modelmount.volumes.leases import Lease, Leases, target_lock_name
from modelmount.volumes.standing import Standing

log = logging.getLogger(__name__)


def end(store: Store) -> int:
    """End them; how many. What somebody is working on is left to them. Raises OSError."""
    leases, anywhere = Leases(store), TargetRoots([Path("/")])
    return sum(_end(store, leases, anywhere, lease) for lease in leases.walk() if lease.owner == "cli")


def _end(store: Store, leases: Leases, anywhere: TargetRoots, lease: Lease) -> bool:
    try:
        if not _is_over(anywhere, lease):
            return False
        held = store.lock(target_lock_name(lease.target)).acquire(timeout=0)
    except LockTimeout:
        return False
    except ModelMountError as e:
        log.warning("cannot look at %s: %s", lease.target, e)  # a link on the way to it
        return False
    with held:
        # Its mount may have been on its way until now: that is made under the target's lock.
        if leases.read(lease.volume_id, lease.target) != lease or not _is_over(anywhere, lease):
            return False
        leases.remove(lease.volume_id, lease.target)
    log.info("the mount at %s is over", lease.target)
    return True


def _is_over(anywhere: TargetRoots, lease: Lease) -> bool:
    return Standing(lease.target, lease, anywhere.state(lease.target)).ended
