"""What one job's threads do next. Parts are begun in the plan's order, small ones several at a time; when connections
turn out to be slow, more of them are wanted, and a large blob is divided among those that have nothing else to do.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelmount.errors import Cancelled
from modelmount.pull import fetch, smalls
from modelmount.pull.connections import Share
from modelmount.pull.fetch import Cancel
from modelmount.pull.governor import Governor
from modelmount.pull.job import Job
from modelmount.pull.parts import Active
from modelmount.pull.plan import SMALL_BYTES, Part
from modelmount.pull.rates import LOOK_SECONDS, Rates
from modelmount.pull.segments import Segment
from modelmount.system.lock import Held

FIRST_CONNECTIONS: Final = max(2, min(4, len(os.sched_getaffinity(0))))
"""Connections that a job with that many parts begins with: with four on two processors, eight blobs over TLS take a
fifth longer than with two (measured).
"""
WORTH_SECONDS: Final = 0.5
"""What a connection is at is divided only when it would take longer than this by itself."""
SEGMENT_SECONDS: Final = 1.0
SEGMENT_BYTES: Final = (8 << 20, 64 << 20)
"""A divided blob's segments take about this long, within these bounds: few requests, and little lost with one."""
WINDOW_ROUNDS: Final = 1.5
"""So many segments for each connection fit into what fetching may be ahead of hashing."""
LAST_SECONDS: Final = 0.15
"""Segments become shorter towards the end, to so much, so that all connections end together."""
LARGE_BLOBS: Final = FIRST_CONNECTIONS
"""Large blobs that are fetched side by side: each has a hasher, and more than there are processors bring nothing."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A segment of a download that is under way; its thread is counted among the owners."""

    active: Active
    segment: Segment


Work = list[Part] | tuple[Part, Held | None] | Slice
"""Small parts, a part to begin (its lock, where the job waited for it), or a slice of one."""


class Schedule:
    """The parts that are left, those in transfer, and how many threads are wanted for them. Thread-safe.

    The job's own thread adds parts, hires threads and looks around now and then; each thread that was hired asks for
    its `next` work until there is none, and says what became of it: `opened` for what it began, `leave` for what it
    fetched of something.
    """

    def __init__(self, job: Job, connections: Share, cancel: Cancel) -> None:
        """Nothing to do yet. Once `cancel` is set there is nothing to do either."""
        self._job, self._connections, self._cancel = job, connections, cancel
        self._changed = threading.Condition()
        self._queue: deque[tuple[Part, Held | None]] = deque()
        self._busy: list[Part] = []
        self._active: list[Active] = []
        self._opening = 0
        self._threads = self._idle = 0
        self._quiet_until = 0.0
        self._governor = Governor(1, 1)
        self.error: BaseException | None = None
        """Why the job failed, once it has."""

    # -- for the job's own thread

    def begin(self, parts: Sequence[Part]) -> None:
        """Queue `parts`, for a number of threads that goes with them. All small ones count as one: a thread that hardly
        waits for the other side gets on with them as fast as two that take turns with the interpreter at each of many
        short system calls, and uses a quarter less of the processors (measured).
        """
        self._queue.extend((part, None) for part in parts)
        small = sum(smalls.fits(part) for part in parts)
        self._governor = Governor(min(FIRST_CONNECTIONS, len(parts) - small + (small > 0)), self._connections.most)

    def add(self, part: Part, held: Held | None = None) -> None:
        """Queue one more, with its lock where the job has it. Any thread may."""
        with self._changed:
            self._queue.append((part, held))
            self._changed.notify_all()

    @property
    def vacancies(self) -> int:
        """How many more threads are wanted now."""
        with self._changed:
            wanted = self._governor.wanted if self._has_work() else 0
            return max(0, wanted - self._threads)

    def hire(self) -> bool:
        """Count one more thread, when the node has a connection left; the first one of a job waits for it."""
        with self._changed:
            if not self._connections.acquire(wait=self._threads == 0, cancelled=self._cancel):
                return False
            self._threads += 1
            return True

    def dismiss(self) -> bool:
        """A hired thread never began; whether that leaves none. Its connection is free again."""
        self._connections.release()
        with self._changed:
            self._threads -= 1
            return self._threads == 0

    def is_over(self) -> bool:
        """Wait until something changes, a moment at most; at once True when no thread is left, and nothing for any."""
        with self._changed:
            if self._threads == 0 and not self._has_work():
                return True
            self._changed.wait(LOOK_SECONDS)
            return False

    def look(self, rates: Rates) -> None:
        """Think the number of threads over, have connections that lag made anew, and one given back that another job
        needs more.
        """
        with self._changed:
            busy = self._threads - self._idle
        came = rates.came(busy)
        if came is not None:
            self._governor.observe(came.rate, busy, came.ours, came.processors)
            for segment in rates.laggards(self.segments(), busy):
                segment.give_up()
        if self._connections.is_wanted:
            self._interrupt_one()

    def actives(self) -> list[Active]:
        """The parts in transfer that nobody ends yet."""
        with self._changed:
            return [active for active in self._active if not active.ending]

    def segments(self) -> list[Segment]:
        """The segments that threads are at."""
        with self._changed:
            return [segment for active in self._active for segment in active.download.segments.owned]

    def take_busy(self) -> list[Part]:
        """The parts that somebody else was at, once."""
        with self._changed:
            busy, self._busy = self._busy, []
            return busy

    def take_active(self) -> list[Active]:
        """After the last thread: the parts that were in transfer when the job was cancelled."""
        with self._changed:
            active, self._active = self._active, []
            return active

    def release_queue(self) -> bool:
        """At the end: let go of what nobody began; whether there was any of it."""
        with self._changed:
            queue, self._queue = self._queue, deque()
        for _, held in queue:
            if held is not None:
                held.release()
        return bool(queue)

    # -- for hired threads

    def next(self) -> Work | None:
        """Something to do, waiting for it if need be; None, and the thread counts no longer, when it isn't needed."""
        with self._changed:
            while self._is_needed() and not self._connections.yields():
                if time.monotonic() < self._quiet_until:
                    self._wait(self._quiet_until)
                    continue
                if group := self._small_group():
                    self._opening += 1
                    return group
                if self._queue and (self._queue[0][0].descriptor.size <= SMALL_BYTES or self._room_for_a_large_one()):
                    self._opening += 1
                    return self._queue.popleft()
                for active in self._active:
                    if active.ending:
                        continue
                    segment = active.download.take(self._segment_length())
                    if segment is not None:
                        active.owners += 1
                        return Slice(active, segment)
                if self._divide():
                    continue
                self._wait()
            self._threads -= 1
            self._changed.notify_all()
            return None

    def opened(self, active: Active | None = None, busy: Sequence[Part] = ()) -> Segment | None:
        """The thread that was given parts to begin is done with that, whatever came of it: with `active`, of which it
        gets the first segment, and with parts that somebody else is at.
        """
        with self._changed:
            if active is not None:
                self._active.append(active)
            self._busy += busy
            self._opening -= 1
            self._changed.notify_all()
            return active.download.take(self._segment_length()) if active is not None else None

    def leave(self, active: Active, segment: Segment | None) -> bool | None:
        """This thread is done with `active` for now, and its `segment`. Where it is the last one of an ended download
        it must end it and call `ended`: then whether the download is complete; else None.
        """
        with self._changed:
            if segment is not None:
                active.download.finish(segment)
            active.owners -= 1
            complete = active.download.segments.is_complete
            ended = complete or active.download.is_broken or self._cancel()
            self._changed.notify_all()
            if active.owners or active.ending or not ended:
                return None
            active.ending = True
            return complete

    def ended(self, active: Active) -> None:
        """It is over and done with."""
        with self._changed:
            self._active.remove(active)
            self._changed.notify_all()

    def rest(self, seconds: float) -> None:
        """Ask nothing for a while, after a failure; what the thread was at is free for others."""
        until = time.monotonic() + seconds
        with self._changed:
            while time.monotonic() < until and self._is_needed() and not self._connections.is_wanted:
                self._wait(until)

    def complained(self, wait: float | None) -> None:
        """The source is asked too much: fewer connections, and none asks anything new for `wait` seconds."""
        with self._changed:
            self._governor.complain(self._threads - self._idle)
            if wait is not None:
                self._quiet_until = max(self._quiet_until, time.monotonic() + wait)
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Nothing is to be done any more. The first error counts; what others then say of being cancelled doesn't. Any
        thread may.
        """
        with self._changed:
            if self.error is None or isinstance(self.error, Cancelled):
                self.error = error
            self._cancel.set()
            self._changed.notify_all()

    # -- inside; with the lock, but for `_interrupt_one`

    def _has_work(self) -> bool:
        return bool(not self._cancel() and (self._queue or self._opening or self._active))

    def _is_needed(self) -> bool:
        """Whether a thread that has nothing to do at the moment should stay."""
        return self._has_work() and self._threads <= self._governor.wanted

    def _wait(self, until: float | None = None) -> None:
        """Be idle until something changes, a moment at most, and not (much) beyond `until`."""
        left = LOOK_SECONDS if until is None else min(LOOK_SECONDS, until - time.monotonic())
        self._idle += 1
        self._changed.wait(max(0.0, left))
        self._idle -= 1

    def _small_group(self) -> list[Part]:
        """The small parts at the head of the queue, this thread's share of them."""
        most = smalls.share(len(self._queue), self._threads)
        found: list[Part] = []
        size = 0
        while self._queue and len(found) < most:
            part = self._queue[0][0]
            size += part.descriptor.size
            if not smalls.fits(part) or (found and size > smalls.GROUP_BYTES):
                break
            found.append(part)
            self._queue.popleft()
        return found

    def _room_for_a_large_one(self) -> bool:
        return sum(active.part.descriptor.size > SMALL_BYTES for active in self._active) < LARGE_BLOBS

    def _segment_length(self) -> int | None:
        """All that is left goes to one connection, unless connections are slow."""
        if not self._governor.may_split:
            return None
        free = sum(active.download.segments.free_bytes for active in self._active)
        shortest = self._governor.rate / max(1, self._threads) * LAST_SECONDS
        return self._bounded(max(shortest, free / max(1, self._threads)))

    def _divide(self) -> bool:
        """Take from whoever has most left, if connections are slow and that one would be long at it."""
        if not self._governor.may_split:
            return False
        longest = {
            active.download: max((segment.missing for segment in active.download.segments.owned), default=0)
            for active in self._active
            if not active.ending
        }
        for download, missing in sorted(longest.items(), key=lambda each: each[1], reverse=True):
            if missing < self._governor.each * WORTH_SECONDS:
                return False
            if download.share(self._bounded(missing / (self._idle + 2))):
                return True
        return False

    def _bounded(self, length: float) -> int:
        """A segment's length: as said, but for what it takes to fetch it, and so that hashing, which waits for the
        first, is no farther behind the last than it may be.
        """
        least, most = SEGMENT_BYTES
        window = fetch.WINDOW_BYTES / (WINDOW_ROUNDS * self._governor.limit)
        return int(max(least, min(length, most, window, self._governor.each * SEGMENT_SECONDS)))

    def _interrupt_one(self) -> None:
        """Have the thread with the longest way to go look up from its segment: its connection may be for another job.
        What it fetched stays, and the rest is anybody's.
        """
        segments = self.segments()
        if segments and not any(segment.leave for segment in segments):
            max(segments, key=lambda segment: segment.missing).leave = True
