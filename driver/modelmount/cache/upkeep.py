"""Keeping the store within its bounds while nobody pulls: others fill the disk too, and bounds change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from modelmount import telemetry
from modelmount.cache import bounds as limits
from modelmount.cache import quarantine
from modelmount.cache.bounds import Account, Bounds
from modelmount.cache.collector import Collector
from modelmount.cache.rounds import Rounds
from modelmount.config import Live
from modelmount.content import pulls
from modelmount.content.store import Store
from modelmount.errors import ModelMountError
from modelmount.system import disk
from modelmount.system.lock import LockCancelled
from modelmount.volumes.vanished import Vanished

log = logging.getLogger(__name__)

ROUND_SECONDS = 30.0
SHORTEST_PAUSE_SECONDS = 0.5
"""Least time between two rounds, however soon something is due."""
TIDY_SECONDS = 3600.0
"""How often leftovers and old partial downloads go though there is room."""


class Upkeep(Rounds):
    """Rounds from `with` to its end; the first comes at once."""

    def __init__(
        self,
        store: Store,
        collector: Collector,
        live: Live,
        *,
        kubelet_heard: Callable[[], bool] = lambda: False,
        round_seconds: float = ROUND_SECONDS,
    ) -> None:
        """Nothing runs yet. `kubelet_heard` says whether a kubelet has spoken to this process."""
        super().__init__("upkeep", first_seconds=0, seconds=round_seconds)
        self._store, self._collector, self._live = store, collector, live
        self._round_seconds = round_seconds
        self._vanished = Vanished(store, live().publish_roots, kubelet_heard)
        self._tidied_at = time.monotonic()
        self._told: Bounds | None = None

    def round(self) -> None:
        """One look at the configuration, the disk and the store, and what follows from it. Raises OSError."""
        quarantine.finish(self._store)
        self._live.refresh()
        settings = self._live()
        self._end_vanished(settings.cache.vanished_seconds)
        bounds = limits.read(settings)
        self._tell(bounds)
        used = self._collector.reader.used_bytes()
        free = disk.free_bytes(Path(settings.root))
        _show(Account.of(bounds, free, used, pulls.outstanding_bytes(self._store)))
        wanted, inodes = limits.excess(settings, bounds, used)
        if not wanted and not inodes and time.monotonic() - self._tidied_at < TIDY_SECONDS:
            return
        try:
            with self._collector.exclusively(cancelled=self._ending.is_set):
                self._collector.collect(wanted, inodes)
        except LockCancelled:
            return
        self._tidied_at = time.monotonic()

    def _end_vanished(self, grace_seconds: float) -> None:
        """Leases whose pods are gone; the next round comes when the next of them is due, if that is sooner."""
        try:
            again = self._vanished.look(grace_seconds).again_seconds
        except (OSError, ModelMountError):  # one odd lease must not keep the store from its bounds
            log.exception("cannot look for leases whose pods are gone; the next round tries again")
            return
        self._pause = min(self._round_seconds, max(again, SHORTEST_PAUSE_SECONDS))

    def _tell(self, bounds: Bounds) -> None:
        """Which bounds count and why, whenever that changes."""
        if bounds != self._told:
            self._told = bounds
            fields = {
                "keep_free": bounds.keep_free,
                "aim_free": bounds.aim_free,
                "keep_inodes": bounds.keep_inodes,
                "budget": bounds.budget,
                "largest_model": bounds.largest,
            }
            log.info("bounds of the cache: %s", bounds.reason, extra={"fields": fields})


def _show(account: Account) -> None:
    telemetry.cache_used_bytes.set(account.used)
    telemetry.cache_reserved_bytes.set(account.reserved)
    telemetry.cache_free_bytes.set(account.free)
    telemetry.cache_budget_bytes.set(account.budget)
