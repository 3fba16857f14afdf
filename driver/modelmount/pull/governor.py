"""How many connections one job uses: more while more brings more, fewer when the other side has had enough. Pure.

Registries and object stores give one connection 20 to 100 MB/s and a handful of them a multiple of that; a fast server
in the same rack gives everything to the first. So the number doubles as long as the total grows with it, and only while
a connection alone is slow. Some registries count requests: 429 and 503 halve the number and stop its growth for a
while.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import Final

FAST_BYTES_PER_SECOND: Final = 250e6
"""A connection that brings this much (2 Gbit/s) needs no help; several would only share the same processor."""
SLOW_BYTES_PER_SECOND: Final = 125e6
"""One that brings less (1 Gbit/s) is capped somewhere: registries and object stores do so at 20 to 100 MB/s. Between
the two it counts as slow only where its thread does little but wait: on a machine whose processors are busy, several
large blobs at once look like that, and more connections made them take twice as long (measured).
"""
BUSY_SHARE: Final = 0.3
"""A thread that is at work for less of the time does little but wait."""
GAIN: Final = 1.15
"""What a doubling must bring to be worth another."""
FIRST_STEP: Final = 4
"""What the number is multiplied with first, when all that is known is that connections are slow."""
OUR_SHARE: Final = 0.5
"""Receiving threads that are at work for more than this share of the time are not kept waiting. Decrypting counts: one
TLS stream takes most of a processor, and more of them on the same processors only take turns (measured).
"""
TOGETHER_SHARE: Final = 1 / 3
"""Nor are threads kept waiting by the other side that use up this share of all processors together: hashing takes
another, and with 16 connections instead of four a pull over TLS took half as long again (measured). Once
connections were slow enough to become more it is processor time alone that counts: that threads also wait for each
other and for the disk kept eight capped ones from becoming sixteen.
"""
ALONE_BYTES_PER_SECOND: Final = 500e6
"""A lone connection whose thread is at work and that brings less, though no slow disk's little, gets one beside it:
decrypting takes so long that two processors bring more than one, while of plain HTTP one thread takes as much as two
(measured).
"""
HOLD_SECONDS: Final = 10.0
"""How long the number stays after the other side complained, or after a doubling brought nothing."""
SPARED_SECONDS: Final = 2.0
"""Complaints are about what was asked before the number was halved, for so long."""


class Governor:
    """Told what happens, answers how many connections are wanted; from one thread, but for `complain`. `rate` is the
    latest it was told, `each` what one connection had of that.
    """

    def __init__(
        self, first: int, limit: int, clock: Callable[[], float] = monotonic, processors: int | None = None
    ) -> None:
        """Begin with `first` connections, never go over `limit`. `processors`: those of this process, if not named."""
        self._processors = processors or len(os.sched_getaffinity(0))
        self.limit = max(1, limit)
        self.wanted = min(max(1, first), self.limit)
        self._clock = clock
        self.rate = self.each = 0.0
        self._rate_before = 0.0
        self._held_until = self._spared_until = 0.0
        self._slow = self._settling = self._paired = False
        self._first = True

    @property
    def may_split(self) -> bool:
        """Whether a blob should be divided among connections that have nothing else to do."""
        return self._slow or self._paired

    def observe(self, rate: float, busy: int, ours: float = 0.0, processors: float = 0.0) -> int:
        """`rate` bytes a second came over `busy` connections of late; the number that is wanted now. `ours` is the
        share of that time in which their threads were at work, from taking bytes out of the socket on: when they hardly
        wait, it isn't the connections that are slow, but this node's disk or processor, and more of them would only
        make it worse. `processors`: how many they used up together.
        """
        if not busy or not rate:
            return self.wanted  # nothing came: nothing is known
        together = ours * busy if self._first else processors
        if ours > OUR_SHARE or together > TOGETHER_SHARE * self._processors:
            # What was known of the connections before holds.
            decrypts = SLOW_BYTES_PER_SECOND < rate < ALONE_BYTES_PER_SECOND
            if self.wanted == 1 and decrypts and self._clock() >= self._held_until:
                self.wanted = min(2, self.limit)
                self._paired = self.wanted == 2
            return self.wanted
        self.rate, self.each = rate, rate / busy
        if self._settling:  # the last change was in the middle of what this rate is about
            self._settling = False
            return self.wanted
        enough = SLOW_BYTES_PER_SECOND if ours > BUSY_SHARE else FAST_BYTES_PER_SECOND
        knew, self._slow = self._slow, self.each < enough
        idle = busy < self.wanted and knew  # whoever has nothing to do finds something once they are known to be slow
        if not self._slow or idle or self._clock() < self._held_until:
            return self.wanted
        if rate > self._rate_before * GAIN:
            more = max(self.wanted, busy * FIRST_STEP) if self._first else self.wanted * 2
            self._first, self._rate_before = False, rate
            self._settling = self.wanted < self.limit
            self.wanted = min(more, self.limit)
        else:
            self._rate_before = 0.0
            self._held_until = self._clock() + HOLD_SECONDS
        return self.wanted

    def complain(self, connections: int) -> None:
        """The other side said that it is too much, of `connections`; what it says shortly afterwards is about the same
        moment. Thread-safe enough: two complaints at once count as one or two.
        """
        now = self._clock()
        if now >= self._spared_until:
            self.wanted = max(1, min(self.wanted, connections) // 2)
            self._spared_until = now + SPARED_SECONDS
        self._first, self._rate_before = False, 0.0
        self._held_until = now + HOLD_SECONDS
