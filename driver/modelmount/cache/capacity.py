"""How large a model may still come to this node: what the scheduler is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from modelmount.cache import bounds as limits
from modelmount.cache.collector import Collector
from modelmount.config import Settings
from modelmount.content import pulls
from modelmount.content.store import Store
from modelmount.system import disk


class Capacity:
    """Thread-safe. `settings` is asked each time, so that a change counts at once."""

    def __init__(self, store: Store, collector: Collector, settings: Callable[[], Settings]) -> None:
        """Nothing is looked at yet."""
        self._store, self._collector, self._settings = store, collector, settings

    def __call__(self) -> int:
        """Bytes that are free for it, less what pulls under way will still write, and what could be evicted; never more
        than the bounds allow at all. A node without files to make has none. Raises OSError.
        """
        settings = self._settings()
        bounds = limits.read(settings)
        plan = self._collector.plan(0)
        free = disk.free_bytes(Path(settings.root))
        room = bounds.room(free, lambda: plan.used) - pulls.outstanding_bytes(self._store)
        if limits.short_inodes(settings, bounds) and not plan.evictable:
            return 0
        return max(0, min(room + plan.evictable, bounds.largest))
