"""The node's connections among its jobs: a waiting pod's job before a prefetch, also in another process, then equal
shares.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

WISH_SECONDS: Final = 1.0
"""A wish for one more counts for so long; whoever still wants one asks again."""
TURN_SECONDS: Final = 10.0
"""With more jobs than connections, each has one for about this long."""
_LOOK_SECONDS: Final = 0.25


class Others(Protocol):
    """Other processes that share these connections: `neighbours.Neighbours`. Only called with the lock held."""

    def tell(self, awaited: Mapping[str, int]) -> None:
        """How many are awaited here, by registry."""

    def have(self, registry: str | None = None) -> int:
        """How many are awaited there, at one registry or altogether."""

    def close(self) -> None:
        """Nobody here has or wants any."""


class Connections:
    """At most `limit` at a time in this process, and at most `of_registry(registry)` to one registry. Thread-safe.

    Who comes first: jobs that somebody waits for, then those with fewer connections, then those that have waited
    longer. Nothing is taken away; whoever has too many is told so, and gives one back when it can.

    Of other processes, prefetches count what is awaited there as taken; jobs that somebody waits for look at nobody
    else's, so that a process which is stopped holds none of them up.
    """

    def __init__(
        self,
        limit: int,
        of_registry: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
        others: Others | None = None,
    ) -> None:
        """All are free. Without `others` this process is alone."""
        self._limit, self._of_registry, self._clock = limit, of_registry, clock
        self._others = others
        self._taken: Counter[str] = Counter()
        self._shares: list[Share] = []
        self._changed = threading.Condition()

    def share(self, registry: str, is_awaited: Callable[[], bool] = lambda: True) -> Share:
        """A job's share, with nothing in it. `is_awaited` says whether anybody waits for the job; it must not block."""
        return Share(self, registry, is_awaited)

    def most(self, share: Share) -> int:
        """For `Share.most`, as the following are for its other methods."""
        return min(self._limit, self._of_registry(share.registry))

    def acquire(self, share: Share, *, wait: bool, cancelled: Callable[[], bool]) -> bool:
        """For `Share.acquire`."""
        with self._changed:
            if share not in self._shares:
                share.since = self._clock()
                self._shares.append(share)
            taken = self._wait(share, cancelled) if wait else self._may_take(share)
            if taken:
                share.since = self._clock()
                share.count += 1
                self._taken[share.registry] += 1
            share.wish_until = 0.0 if taken or wait else self._clock() + WISH_SECONDS
            self._forget(share)
            return taken

    def release(self, share: Share) -> None:
        """For `Share.release`."""
        with self._changed:
            share.count -= 1
            share.leaving = max(0, share.leaving - 1)
            share.since = self._clock()
            self._taken[share.registry] -= 1
            self._forget(share)
            self._changed.notify_all()

    def is_wanted(self, share: Share, *, promise: bool) -> bool:
        """For `Share.is_wanted` and, with a `promise`, `Share.yields`."""
        with self._changed:
            self._tell()  # whether somebody waits for a job changes with time
            wanted = self._makes_way(share) or any(self._should_yield(share, other) for other in self._wanting(share))
            if wanted and promise:
                share.leaving += 1
            return wanted

    # -- inside; all with the lock

    def _wait(self, share: Share, cancelled: Callable[[], bool]) -> bool:
        share.waiting = True
        try:
            while not self._may_take(share):
                if cancelled():
                    return False
                self._changed.wait(_LOOK_SECONDS)
            return True
        finally:
            share.waiting = False

    def _forget(self, share: Share) -> None:
        """Who has none and waits for none doesn't count."""
        if not share.count and share in self._shares:
            self._shares.remove(share)
        self._tell()

    def _tell(self) -> None:
        if self._others is None:
            return
        awaited: Counter[str] = Counter()
        for each in self._shares:
            if each.count and each.is_awaited():
                awaited[each.registry] += each.count
        self._others.tell(awaited)
        if not self._shares:
            self._others.close()

    def _wanting(self, but: Share) -> Iterator[Share]:
        now = self._clock()
        return (each for each in self._shares if each is not but and (each.waiting or now < each.wish_until))

    def _free(self, registry: str | None = None) -> int:
        """How many are free on the node, or at one registry."""
        if registry is None:
            return self._limit - self._taken.total()
        return self._of_registry(registry) - self._taken[registry]

    def _may_take(self, share: Share) -> bool:
        """Whether one is free, and one more for everybody who comes first and could have it."""
        first = [
            each
            for each in self._wanting(share)
            if each.rank < share.rank and (each.registry == share.registry or self._free(each.registry) > 0)
        ]
        same = sum(each.registry == share.registry for each in first)
        there = 0 if share.is_awaited() else self._elsewhere()
        at_registry = 0 if share.is_awaited() else self._elsewhere(share.registry)
        return self._free() - there > len(first) and self._free(share.registry) - at_registry > same

    def _elsewhere(self, registry: str | None = None) -> int:
        return 0 if self._others is None else self._others.have(registry)

    def _makes_way(self, share: Share) -> bool:
        """Whether others have so many for waiting pods that one must go here, and `share` is the one to give it."""
        if share.is_awaited() or not share.kept:
            return False
        for registry in (None, share.registry):
            holders = [each for each in self._shares if each.kept > 0 and registry in {None, each.registry}]
            limit = self._limit if registry is None else self._of_registry(registry)
            more = sum(each.kept for each in holders) + self._elsewhere(registry) > limit
            if more and max(holders, key=_wealth) is share:
                return True
        return False

    def _should_yield(self, share: Share, other: Share) -> bool:
        """Whether `other` can't have one, deserves it more, and `share` is the one that should give it up."""
        node_full, registry_full = self._free() <= 0, self._free(other.registry) <= 0
        if not (node_full or registry_full):
            return False
        holders = [
            each
            for each in self._shares
            if each is not other and each.kept > 0 and (not registry_full or each.registry == other.registry)
        ]
        return bool(holders) and max(holders, key=_wealth) is share and self._deserves(other, share)

    def _deserves(self, other: Share, share: Share) -> bool:
        if other.is_awaited() is not share.is_awaited():
            return other.is_awaited()
        if share.kept > other.count + 1:
            return True
        return other.count == 0 and self._clock() - max(other.since, share.since) >= TURN_SECONDS


class Share:
    """One job's connections to one registry: for its own threads."""

    def __init__(self, connections: Connections, registry: str, is_awaited: Callable[[], bool]) -> None:
        """Made by `Connections.share`."""
        self.registry, self.is_awaited = registry, is_awaited
        self.count = self.leaving = 0
        self.waiting = False
        self.since = self.wish_until = 0.0
        self._connections = connections

    @property
    def most(self) -> int:
        """The most that it may have."""
        return self._connections.most(self)

    @property
    def kept(self) -> int:
        """How many it has and doesn't give back yet."""
        return self.count - self.leaving

    @property
    def rank(self) -> tuple[bool, int, float]:
        """The lowest comes first."""
        return not self.is_awaited(), self.count, self.since

    def acquire(self, *, wait: bool, cancelled: Callable[[], bool]) -> bool:
        """Take one more. False when there is none for this job and the caller doesn't `wait`, or once `cancelled`."""
        return self._connections.acquire(self, wait=wait, cancelled=cancelled)

    def release(self) -> None:
        """Give one back."""
        self._connections.release(self)

    @property
    def is_wanted(self) -> bool:
        """Whether one of these should go to another job."""
        return self._connections.is_wanted(self, promise=False)

    def yields(self) -> bool:
        """The same; the caller that gets True releases one as soon as it can."""
        return self._connections.is_wanted(self, promise=True)


def _wealth(share: Share) -> tuple[bool, int, float]:
    """The highest gives first: prefetches, then who has most, then who has had them longest."""
    return not share.is_awaited(), share.kept, -share.since
