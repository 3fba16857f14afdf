"""The collector: makes room, and clears away what nobody needs. One for a process; driver and command line may collect
at the same time, one after the other.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from modelmount import telemetry
from modelmount.cache import holds as holding
from modelmount.cache import order
from modelmount.cache.census import Census, Reader
from modelmount.cache.holds import Hold, Holds
from modelmount.cache.order import Victim
from modelmount.cache.shares import Quotas, Shares
from modelmount.cache.sweep import Sweep, Swept
from modelmount.config import Cache
from modelmount.content.store import Store
from modelmount.system import disk
from modelmount.system.lock import Held
from modelmount.volumes import finished
from modelmount.volumes.leases import KnownLeases

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would go, in this order, and what that frees; `garbage` are bytes that nothing names, which go first."""

    victims: tuple[Victim, ...]
    garbage: int
    garbage_inodes: int
    evictable: int
    held: dict[Hold, int]
    used: int

    @property
    def frees(self) -> int:
        """All of it."""
        return self.garbage + sum(victim.frees for victim in self.victims)

    @property
    def frees_inodes(self) -> int:
        """Files that can be made anew afterwards, at least: trees' directories aren't counted."""
        return self.garbage_inodes + sum(victim.frees_inodes for victim in self.victims)


class Collector:
    """Thread-safe. `settings` is asked each time, so that a change counts at once."""

    def __init__(self, store: Store, settings: Callable[[], Cache], now: Callable[[], float] = time.time) -> None:
        """Nothing is read yet."""
        self._store, self._settings, self._now = store, settings, now
        self.reader = Reader(store)
        self._lock = threading.Lock()
        self._leases: KnownLeases = {}

    def plan(
        self,
        bytes_wanted: float,
        inodes_wanted: int = 0,
        *,
        grace_seconds: float | None = None,
        within: str | None = None,
    ) -> Plan:
        """What a collection of so much would take now (`inf`: everything that may go); `within` one namespace: of what
        it has alone. Changes nothing. Raises OSError when something can't be read.
        """
        census, holds = self._look()
        return self._plan(census, holds, bytes_wanted, inodes_wanted, self._grace(grace_seconds), within)

    def collect(
        self,
        bytes_wanted: float,
        inodes_wanted: int = 0,
        *,
        grace_seconds: float | None = None,
        within: str | None = None,
    ) -> Swept:
        """Take what nothing names, old partial downloads, and then models in order until that much is free, or nothing
        more may go; `within` one namespace: its own models only. Returns when they are free. The caller holds the
        `sweep` lock (`exclusively`).
        """
        grace = self._grace(grace_seconds)
        finished.end(self._store)
        census, holds = self._look()
        victims = list(self._choose(census, holds, bytes_wanted, inodes_wanted, grace, within))
        models = [victim.model for victim in victims if victim.model is not None]
        models += order.empty(census, holds, self._now(), grace_seconds=grace)
        partials = [victim.partial for victim in victims if victim.partial is not None]
        swept = Sweep(self._store, self.reader, self._holds, self._now, grace_seconds=grace).run(
            census, models, partials
        )
        if swept.models or swept.items or swept.partials or swept.trees:
            telemetry.evictions_total.inc(len(swept.models))
            telemetry.evicted_bytes_total.inc(swept.bytes)
            fields = {"models": swept.models, "bytes": swept.bytes, "items": swept.items, "partials": swept.partials}
            log.info("collected", extra={"fields": fields})
        return swept

    def counted(self) -> tuple[Census, Shares]:
        """What is here, and what each namespace has of it. Raises OSError."""
        census, holds = self._look()
        return census, Shares(census, holds, Quotas.of(self._settings()))

    def shares(self) -> Shares:
        """What each namespace has here. Raises OSError."""
        return self.counted()[1]

    def exclusively(self, *, cancelled: Callable[[], bool] | None = None) -> Held:
        """The lock that orders collections of all processes; outermost, so hold no other. Raises LockCancelled."""
        return self._store.lock("sweep").acquire(cancelled=cancelled)

    # -- inside

    def _look(self) -> tuple[Census, Holds]:
        # Holds first: what is held later was used later, which the sweep sees.
        holds = self._holds()
        return self.reader.read(holds.models), holds

    def _holds(self) -> Holds:
        with self._lock:
            return holding.read(self._store, self._settings().pins, self._leases)

    def _grace(self, given: float | None) -> float:
        return self._settings().grace_seconds if given is None else given

    def _plan(
        self,
        census: Census,
        holds: Holds,
        bytes_wanted: float,
        inodes_wanted: int,
        grace: float,
        within: str | None = None,
    ) -> Plan:
        victims = tuple(self._choose(census, holds, bytes_wanted, inodes_wanted, grace, within))
        garbage = self._garbage(census, holds, grace, within)
        if within is None:
            used, kept = census.bytes, order.keeping(census, holds)
            evictable = garbage.bytes + order.evictable(census, holds, kept, self._now(), grace_seconds=grace)
        else:
            shares = Shares(census, holds, Quotas.of(self._settings()))
            used = shares.charged.get(within, 0)
            kept = order.keeping(census, holds, of=shares.items_of(within).__contains__)
            evictable = sum(victim.frees for victim in self._victims(census, holds, grace, within))
        return Plan(
            victims=victims,
            garbage=garbage.bytes,
            garbage_inodes=garbage.inodes,
            evictable=evictable,
            held=dict(kept.bytes),
            used=used,
        )

    def _garbage(self, census: Census, holds: Holds, grace: float, within: str | None) -> disk.Footprint:
        """What goes in any case: what nothing names. Of what is held only live pulls' content can be among it. Who
        counts against a quota gets nothing from what nobody has.
        """
        if within is not None:
            return disk.Footprint(0, 0)
        names = order.garbage(census, self._now(), grace_seconds=grace)
        items = [item for name in names if (item := census.items[name]).hex not in holds.digests]
        return disk.Footprint(sum(item.bytes for item in items), sum(item.inodes for item in items))

    def _victims(self, census: Census, holds: Holds, grace: float, within: str | None) -> Iterator[Victim]:
        settings = self._settings()
        return order.victims(
            census,
            holds,
            self._now(),
            grace_seconds=grace,
            shares=Shares(census, holds, Quotas.of(settings)),
            working_set_seconds=settings.working_set_seconds,
            within=within,
        )

    def _choose(
        self,
        census: Census,
        holds: Holds,
        bytes_wanted: float,
        inodes_wanted: int,
        grace: float,
        within: str | None,
    ) -> Iterator[Victim]:
        """Old partial downloads in any case, then in order as long as more is wanted: what gives nothing back, because
        held models share it, goes only when everything does. Nothing is put in order when nothing more is wanted.
        """
        garbage = self._garbage(census, holds, grace, within)
        bytes_wanted, inodes_wanted = bytes_wanted - garbage.bytes, inodes_wanted - garbage.inodes
        limit, old = self._settings().partial_seconds, set[str]()
        if within is None:
            for victim in order.partials(census, holds, self._now(), grace_seconds=grace):
                if victim.partial is not None and victim.idle_seconds >= limit:
                    old.add(victim.partial.name)
                    bytes_wanted, inodes_wanted = bytes_wanted - victim.frees, inodes_wanted - victim.frees_inodes
                    yield victim
        if bytes_wanted <= 0 and inodes_wanted <= 0:
            return
        for victim in self._victims(census, holds, grace, within):
            if victim.partial is not None and victim.partial.name in old:
                continue
            if victim.score > 0 or bytes_wanted == math.inf:
                bytes_wanted, inodes_wanted = bytes_wanted - victim.frees, inodes_wanted - victim.frees_inodes
                yield victim
            if bytes_wanted <= 0 and inodes_wanted <= 0:
                return
