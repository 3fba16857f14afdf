"""Use and health of a volume, as the kubelet and who watches it are told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from modelmount.system import disk
from modelmount.volumes.leases import Lease

UNCOUNTED_INODES = 1 << 32
"""Free inodes of a file system that has no fixed number of them: 0 would mean "full" to whoever watches volumes."""
SHOWN_PART = 4
"""At least this part of what is used is shown as available."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Use and health of one publication; counts are never negative."""

    used_bytes: int
    available_bytes: int
    used_inodes: int
    available_inodes: int
    abnormal: bool
    message: str


def of_lease(lease: Lease, store: Path, trouble: str) -> Stats:
    """In constant time, of a publication with so much `trouble` (empty: none) on the store's file system."""
    figures = os.statvfs(store)
    inodes = disk.free_inodes(store)
    return Stats(
        used_bytes=lease.bytes,
        available_bytes=shown_available(figures.f_bavail * figures.f_frsize, lease.bytes),
        used_inodes=lease.files,
        available_inodes=UNCOUNTED_INODES if inodes is None else shown_available(inodes, lease.files),
        abnormal=bool(trouble),
        message=trouble or f"{lease.reference or 'the model'} is mounted",
    )


def shown_available(free: int, used: int) -> int:
    """What a volume of so many bytes or files says that it has left, on a file system with so many free ones.

    A model never grows, and a cache is meant to be full: so never less than a quarter of what is used. The usual alerts
    begin where less than 15 % of a volume is left and getting less.
    """
    return max(free, used // SHOWN_PART + 1)
