"""Keeping the store within its bounds while nobody pulls: others fill the disk too, and bounds change."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from modelmount import telemetry
from modelmount.cache import bounds as limits
from modelmount.cache.bounds import Bounds
from modelmount.cache.collector import Collector
from modelmount.config import Live
from modelmount.content import pulls
from modelmount.content.store import Store
from modelmount.errors import ModelMountError
from modelmount.system import disk
from modelmount.system.lock import LockCancelled

log = logging.getLogger(__name__)

ROUND_SECONDS = 30.0
TIDY_SECONDS = 3600.0
"""How often leftovers and old partial downloads go though there is room."""


class Upkeep:
    """A thread from `with` to its end. What goes wrong is logged and tried again in the next round."""

    def __init__(self, store: Store, collector: Collector, live: Live, *, round_seconds: float = ROUND_SECONDS) -> None:
        """Nothing runs yet."""
        self._store, self._collector, self._live, self._seconds = store, collector, live, round_seconds
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._tidied_at = time.monotonic()
        self._told: Bounds | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def round(self) -> None:
        """One look at the configuration, the disk and the store, and what follows from it. Raises OSError."""
        self._live.refresh()
        settings = self._live()
        bounds = limits.read(settings)
        self._tell(bounds)
        used = self._collector.reader.used_bytes()
        _show(bounds, disk.free_bytes(Path(settings.root)), used, pulls.outstanding_bytes(self._store))
        wanted, inodes = limits.excess(settings, bounds, used)
        if not wanted and not inodes and time.monotonic() - self._tidied_at < TIDY_SECONDS:
            return
        try:
            with self._collector.exclusively(cancelled=self._ending.is_set):
                self._collector.collect(wanted, inodes)
        except LockCancelled:
            return
        self._tidied_at = time.monotonic()

    def _run(self) -> None:
        while True:
            try:
                self.round()
            except (OSError, ModelMountError):
                log.exception("the store could not be looked after; it is tried again in %.0f s", self._seconds)
            except Exception:  # a thread that ends would leave the disk to fill up
                log.exception("looking after the store failed unexpectedly")
            if self._ending.wait(self._seconds):
                return

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


def _show(bounds: Bounds, free: int, used: int, reserved: int) -> None:
    telemetry.cache_used_bytes.set(used)
    telemetry.cache_reserved_bytes.set(reserved)
    telemetry.cache_free_bytes.set(max(0, bounds.room(free, lambda: used) - reserved))
    telemetry.cache_budget_bytes.set(used + max(0, bounds.room(free, lambda: used)))
