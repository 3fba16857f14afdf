"""How much the store may take: the admin's settings, the kubelet's thresholds, and the file system as it is now."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelmount.cache import thresholds
from modelmount.config import Settings
from modelmount.pull.progress import human_bytes
from modelmount.system import disk

HEADROOM_PERCENT = 5
"""How far below the high watermark the low one is, where none is set."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What holds now. `keep_free` bytes stay free on the file system, `reason` says whose rule that is; collection aims
    at `aim_free`. `budget` is the most that the store may take itself, None without a bound.
    """

    total: int
    keep_free: int
    reason: str
    aim_free: int
    keep_inodes: int
    budget: int | None

    @property
    def largest(self) -> int:
        """The largest model that can ever be here."""
        return max(0, min(self.total - self.keep_free, self.total if self.budget is None else self.budget))

    def room(self, free: int, used: Callable[[], int]) -> int:
        """How much more may be written, when so much is free; `used` by the store is asked only under a budget."""
        left = free - self.keep_free
        return left if self.budget is None else min(left, self.budget - used())


@dataclass(frozen=True, slots=True)
class Account:
    """Bytes of one moment. `budget` is what the store may take as its disk is now, `reserved` what pulls under way will
    still write, `free` what further ones may write before anything goes.
    """

    budget: int
    used: int
    reserved: int
    free: int

    @classmethod
    def of(cls, bounds: Bounds, free: int, used: int, reserved: int) -> Account:
        """With so many bytes free on the file system."""
        room = bounds.room(free, lambda: used)
        return cls(used + max(0, room), used, reserved, max(0, room - reserved))


def read(settings: Settings) -> Bounds:
    """Look now. Raises OSError when the store's file system can't be asked."""
    root, cache = Path(settings.root), settings.cache
    figures = os.statvfs(root)
    total = figures.f_blocks * figures.f_frsize
    rules = [(settings.limits.free_bytes, f"limits.free_bytes keeps {human_bytes(settings.limits.free_bytes)} free")]
    inodes = cache.free_inodes if figures.f_files else 0
    if cache.high_watermark is not None:
        free = total * (100 - cache.high_watermark) // 100
        rules.append((free, f"cache.high_watermark is {cache.high_watermark} %"))
    demand = thresholds.demand(thresholds.read(settings), settings, root)
    if demand is not None:
        rules.append((demand.bytes, demand.reason))
        inodes = max(inodes, demand.inodes)
    keep_free, reason = max(rules)
    if len(rules) == 1:
        aim = keep_free  # nobody but pulls minds how full it is
    elif cache.low_watermark is not None:
        aim = max(keep_free, total * (100 - cache.low_watermark) // 100)
    else:
        aim = keep_free + total * HEADROOM_PERCENT // 100
    budgets = [cache.max_bytes, None if cache.share is None else int(total * cache.share)]
    return Bounds(total, keep_free, reason, aim, inodes, min((b for b in budgets if b is not None), default=None))


def excess(settings: Settings, bounds: Bounds, used: int) -> tuple[int, int]:
    """How many bytes and inodes too many are in use, when the store takes `used`: beyond its budget, or, where others
    fill the disk, beyond what the collection aims at. Raises OSError.
    """
    free = disk.free_bytes(Path(settings.root))
    crowded = bounds.aim_free - free if free < bounds.keep_free else 0
    over = 0 if bounds.budget is None else used - bounds.budget
    return max(0, crowded, over), short_inodes(settings, bounds)


def short_inodes(settings: Settings, bounds: Bounds) -> int:
    """How many files too few can be made; 0 where there are enough, or no fixed number."""
    free = disk.free_inodes(Path(settings.root))
    return 0 if free is None else max(0, bounds.keep_inodes - free)
