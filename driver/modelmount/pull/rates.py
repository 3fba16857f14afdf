"""How fast a job's connections are, measured from look to look: what the governor is told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelmount.pull.progress import Progress
from modelmount.pull.segments import Segment

LOOK_SECONDS: Final = 0.1
"""Less than this tells nothing."""
LAGGARD_SECONDS: Final = 5.0
LAGGARD_SHARE: Final = 0.1
"""A connection that brings less than this share of what they bring on average, for so long, is made anew."""


@dataclass(frozen=True, slots=True)
class Came:
    """Bytes a second, the share of the time in which receiving threads were at work on them, and how many processors
    they used up together.
    """

    rate: float
    ours: float
    processors: float


class Rates:
    """What came since the last look, of one job and of its segments. For one thread."""

    def __init__(self, progress: Progress) -> None:
        """The first look is now."""
        self._progress = progress
        self._at = self._segments_at = time.monotonic()
        self._bytes = self._segments_bytes = progress.fetched_bytes
        self._worked, self._computed = progress.worked_seconds, progress.processor_seconds
        self._warm = False
        self._positions: dict[Segment, int] = {}

    def came(self, busy: int) -> Came | None:
        """What `busy` threads brought since it was last asked; None when that is too short ago to tell, and until bytes
        have come for the first time: before, connections were still being made.
        """
        progress = self._progress
        now, count = time.monotonic(), progress.fetched_bytes
        worked, computed = progress.worked_seconds, progress.processor_seconds
        span = now - self._at
        if span < LOOK_SECONDS:
            return None
        ours = (worked - self._worked) / (span * max(1, busy))
        came = Came((count - self._bytes) / span, ours, (computed - self._computed) / span)
        self._at, self._bytes, self._worked, self._computed = now, count, worked, computed
        warm, self._warm = self._warm, self._warm or came.rate > 0
        return came if warm else None

    def laggards(self, segments: Sequence[Segment], busy: int) -> list[Segment]:
        """Of `segments`, which `busy` threads are at, those that brought far less than their share of what came in the
        last LAGGARD_SECONDS. Only now and then; most segments don't last that long, and then aren't slow.
        """
        now, count = time.monotonic(), self._progress.fetched_bytes
        if now - self._segments_at < LAGGARD_SECONDS:
            return []
        least = LAGGARD_SHARE * (count - self._segments_bytes) / max(1, busy)
        before, self._positions = self._positions, {segment: segment.position for segment in segments}
        self._segments_at, self._segments_bytes = now, count
        return [each for each in segments if each in before and each.position - before[each] < least]
