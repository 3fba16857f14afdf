"""One blob from its source into its ingest, by any number of threads: received, journalled, hashed behind the writers,
verified. The hot path of a pull.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from modelmount import telemetry
from modelmount.content import ingest as ingests
from modelmount.content.backoff import Backoff
from modelmount.content.ingest import Ingest
from modelmount.content.writer import Writer
from modelmount.errors import Cancelled, IntegrityError, ModelMountError, Unavailable
from modelmount.oci.descriptor import Descriptor
from modelmount.pull.hashing import Behind, Follower
from modelmount.pull.progress import Counters
from modelmount.pull.segments import Segment, Segments
from modelmount.sources.base import BlobSource, Opened
from modelmount.system import disk
from modelmount.transport.retry import Policy

BUFFER_BYTES = 512 << 10
"""One receive and its bookkeeping: a quarter less of a processor than with 128 KiB, which is what is written at once
(measured; see docs/design/0001). As much as a journal's piece, so that little comes again after a kill.
"""
ATTEMPTS = 6
"""Failures in a row that brought next to nothing to anybody; then the job gives up: the caller's back-off decides."""
PROGRESS_BYTES = 64 << 10
"""A try that brought so much before it failed doesn't count among them: it got on."""
AT_ONCE_BYTES = 1 << 20
"""One that brought so much may be followed by the next at once."""
WINDOW_BYTES = 512 << 20
"""How far fetching may run ahead of hashing: what is hashed then is in the page cache still."""
_LOOK_SECONDS = 0.25


class Cancel:
    """A job's cancel switch: checked between buffers, waited on during back-off."""

    def __init__(self, parent: Cancel | None = None) -> None:
        """Not cancelled yet; a parent's cancel counts too."""
        self._event = threading.Event()
        self._parent = parent

    def set(self) -> None:
        """Ask the job to stop; it keeps its bytes."""
        self._event.set()

    def __call__(self) -> bool:
        """Whether the job should stop."""
        return self._event.is_set() or (self._parent is not None and self._parent())

    def sleep(self, seconds: float) -> None:
        """Wait, but not (much) beyond a cancel."""
        end = time.monotonic() + seconds
        while not self() and (left := end - time.monotonic()) > 0:
            self._event.wait(min(left, 0.25))


class Line:
    """One thread's way to the source, for its life: the buffer it receives into, and what it is told there. For that
    thread only.
    """

    def __init__(self) -> None:
        """Nothing failed yet."""
        self.view = disk.buffer(BUFFER_BYTES)
        self.failures = 0
        """Requests in a row that brought nothing."""
        self._silent = 0
        self._heard = 0

    def failed(self, brought: int, fetched_bytes: int) -> bool:
        """A request ended in a failure after it `brought` so many bytes; the whole job has `fetched_bytes` by now.
        Whether others get theirs while this thread gets nothing.
        """
        if brought >= PROGRESS_BYTES:
            self.failures = self._silent = 0
        self.failures += 1
        others = self.failures > 1 and fetched_bytes - brought > self._heard
        self._silent = 1 if others else self._silent + 1
        self._heard = fetched_bytes
        return others

    def went_well(self) -> None:
        """A request brought what was asked for."""
        self.failures = self._silent = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether there were too many failures in a row during which nobody got anything."""
        return self._silent >= ATTEMPTS


class Download:
    """A blob that is being fetched. Threads `take` a segment, `fetch` it and `finish` it; when nobody has one and
    nothing is missing, one thread calls `verify`. Whoever ends it, whatever way, calls `close`.

    Raises IntegrityError at once while the source is backed off for earlier wrong bytes.
    """

    def __init__(
        self,
        ingest: Ingest,
        descriptor: Descriptor,
        source: BlobSource,
        backoff: Backoff,
        progress: Counters,
        cancel: Cancel,
        *,
        policy: Policy | None = None,
        complained: Callable[[float | None], None] = lambda wait: None,
    ) -> None:
        """`complained` is called whenever the source is asked too much, with the seconds to wait if it named some."""
        backoff.check()
        self.ingest, self.descriptor = ingest, descriptor
        self.segments = Segments(ingest.missing)
        self._source, self._backoff, self._progress, self._cancel = source, backoff, progress, cancel
        self._policy = policy or Policy()
        self._complained = complained
        self._streams: list[Behind] = []
        self._follower = Follower(ingest.read_into, descriptor.digest, descriptor.size)
        self._ranges = True
        self._error: IntegrityError | None = None
        self._wrong = self.is_elsewhere = False
        self._progress.have(descriptor.size - sum(end - start for start, end in ingest.missing))
        self._follower.advance(ingest.offset)

    @property
    def is_broken(self) -> bool:
        """Whether the source's bytes can't be right: whoever fetches stops."""
        return self._error is not None

    def check(self) -> None:
        """Raise NoSpace or Internal when what was written can't be read back: nobody would notice before the end, or
        ever, once the window is full.
        """
        if self._follower.error is not None:
            raise self._unreadable(self._follower.error)

    def take(self, length: int | None) -> Segment | None:
        """A segment of at most `length` bytes, if one is free and within the window."""
        if self._error is not None:
            return None
        if not self._ranges:
            if self.segments.owned:
                return None
            length = None
            self._progress.have(-self.segments.merge())
        below = min(self._follower.position + WINDOW_BYTES, self.ingest.front + 1)
        return self.segments.take(length, below)

    def share(self, length: int) -> bool:
        """Make segments that others can take out of what somebody is at; whether there are some now."""
        return self._ranges and self._error is None and self.segments.share(length, self.ingest.front)

    def fetch(self, segment: Segment, line: Line) -> float:
        """Fetch `segment` until its end, its `leave`, a cancel, or until it is better given back: the blob is broken,
        the source does no ranges, or it has trouble. The seconds for which this thread should ask nothing then.

        Raises Unavailable after repeated failures in which nobody got anything to speak of, NoSpace, and what the
        source's answer means; IntegrityError marks the blob as broken first.
        """
        while segment.missing > 0 and not segment.leave and not self._stops():
            before = segment.position
            try:
                if not self._receive(segment, line.view):
                    return 0.0
            except Unavailable as e:
                if segment.renew:
                    continue  # it was interrupted
                self._progress.failed(e.message)
                brought = segment.position - before
                if line.failed(brought, self._progress.job_bytes) or e.retry_after is not None:
                    wait = None if e.retry_after is None else self._policy.delay(1, e.retry_after)
                    self._complained(wait)
                if line.is_hopeless:
                    raise
                if brought < AT_ONCE_BYTES:
                    return self._policy.delay(line.failures, e.retry_after)
            except IntegrityError as e:
                self._error = e
                raise
            else:
                line.went_well()
        return 0.0

    def stream(self, cancel: Cancel) -> Behind:
        """The blob from its beginning, for one reader, as far as it is hashed."""
        stream = Behind(self.ingest.path, self.descriptor.size, self._follower, cancel)
        self._streams.append(stream)
        return stream

    @property
    def spent(self) -> int:
        """Bytes from the blob's beginning that nobody will read again here."""
        return min([self._follower.hashed, *(stream.position for stream in self._streams)])

    def finish(self, segment: Segment) -> None:
        """The thread that took `segment` is done with it, however far it came."""
        self.segments.finish(segment)

    def verify(self) -> None:
        """Everything is written: wait for the hash and compare. Raises IntegrityError, and the source is backed off,
        unless it says that the blob `is_elsewhere`: then it can be fetched anew at once.
        """
        try:
            found = self._follower.finish()
        except OSError as e:
            raise self._unreadable(e) from e
        digest = self.descriptor.digest
        if found != digest.hex:
            self._wrong = True
            self._error = wrong_bytes(self._source, self.descriptor, found)
            self.is_elsewhere = self._source.blame(self.descriptor, self._error.message)
            raise self._error
        self._backoff.forgive()
        telemetry.blobs_total.labels("fetched").inc()

    def close(self) -> None:
        """Stop hashing. A broken blob's source is backed off; bytes with another digest are dropped, and an ingest that
        got none. All others stay in it, and the caller closes or commits it: that a source now speaks of another size
        says nothing against what it sent before. Nobody may own a segment.
        """
        self._follower.stop()
        if self._error is not None:
            if not self.is_elsewhere:
                self._backoff.punish(self._error.message)
            telemetry.blobs_total.labels("refused").inc()
        if self._wrong:
            self._progress.have(-self.descriptor.size)
            self.ingest.discard()
        elif self._error is not None and self.ingest.missing == ((0, self.descriptor.size),):
            self.ingest.discard()

    # -- one request

    def _unreadable(self, error: OSError) -> ModelMountError:
        return ingests.disk_error(error, f"read {self.descriptor.digest} back")

    def _stops(self) -> bool:
        return self._cancel() or self._error is not None

    def _receive(self, segment: Segment, view: memoryview) -> bool:
        """Append what one request brings to the segment; False when the source turned out to do no ranges and somebody
        else is the one who goes on.
        """
        segment.renew = False
        end = None if segment.end == self.descriptor.size else segment.end
        with self._source.open(self.descriptor, segment.position, end) as opened:
            ignored = opened.offset != segment.position
            if ignored:
                self._ranges = False
            if self._is_in_the_way(segment):
                return False
            segment.stream = opened
            # Asked for its head, a source without ranges sends everything too, and doesn't say so.
            to_the_end = opened.offset == 0 or end is None
            try:
                with self.ingest.writer(segment.position) as writer:
                    self._copy(segment, view, opened, writer, to_the_end=to_the_end)
            finally:
                segment.stream = None
        if segment.missing > 0 and not self._stops() and not self._leaves(segment):
            raise Unavailable(
                f"{self._source.name} ended {self.descriptor.digest} after {segment.position} of "
                f"{self.descriptor.size} bytes"
            )
        return True

    def _copy(self, segment: Segment, view: memoryview, opened: Opened, writer: Writer, *, to_the_end: bool) -> None:
        """`to_the_end`: more of `opened` may come than the segment needs, which is welcome without ranges."""
        skip = segment.position - opened.offset  # a source that ignores ranges sends the head once more
        while not self._stops() and not self._leaves(segment):
            # One byte more at the blob's end shows a source that has more than it should.
            room = segment.end - segment.position
            beyond = 1 if segment.end == self.descriptor.size else 0
            if room + beyond == 0 and not (to_the_end and not self._ranges and self._take_the_rest(segment)):
                return
            before = time.thread_time()
            count = opened.readinto(view[: segment.end - segment.position + beyond + skip])
            received = time.thread_time() - before
            if not count:
                return
            telemetry.fetched_bytes_total.inc(count)
            if skip >= count:
                skip -= count
                continue
            part, skip = view[skip:count], 0
            if len(part) > segment.end - segment.position:
                raise too_many_bytes(self._source, self.descriptor)
            began = time.monotonic()
            writer.append(part)
            segment.position = writer.offset
            self._follower.advance(self.ingest.offset)
            self._stay_in_the_window()
            worked = received + time.monotonic() - began
            self._progress.fetched(len(part), worked, time.thread_time() - before)

    def _take_the_rest(self, segment: Segment) -> bool:
        """Let the only owner go on to the blob's end; bytes that others wrote there come once more."""
        written = self.segments.extend(segment, self.descriptor.size)
        if written is None:
            return False
        self._progress.have(-written)
        return segment.missing > 0

    def _stay_in_the_window(self) -> None:
        """Wait for the hash, where it alone is behind: on what is written without a gap it goes on whatever else
        happens.
        """
        while (
            self.ingest.offset - self._follower.position > WINDOW_BYTES
            and not self._stops()
            and self._follower.error is None
        ):
            self._follower.wait_beyond(self._follower.position, _LOOK_SECONDS)

    def _is_in_the_way(self, segment: Segment) -> bool:
        """Whether there are no ranges, so that one stream has to do, and somebody else's is farther ahead with it."""
        return not self._ranges and not self.segments.is_first(segment)

    def _leaves(self, segment: Segment) -> bool:
        """Whether this request should end early: a fresh connection is wanted, or the blob needs one stream only."""
        return segment.renew or segment.leave or self._is_in_the_way(segment)


def wrong_bytes(source: BlobSource, descriptor: Descriptor, found: str) -> IntegrityError:
    """What a source that served something else gets; `found` is the hash of its bytes."""
    digest = descriptor.digest
    return IntegrityError(
        f"{source.name} served wrong bytes for {digest} (they hash to {digest.algorithm}:{found}); nothing of it was "
        "shown to any pod; have the registry's copy checked or push the model again"
    )


def too_many_bytes(source: BlobSource, descriptor: Descriptor) -> IntegrityError:
    """What a source that doesn't stop gets."""
    return IntegrityError(
        f"{source.name} sent more than the {descriptor.size} bytes that {descriptor.digest} has; push the model again"
    )


def stopped(digest: object) -> Cancelled:
    """What a cancelled job ends with."""
    return Cancelled(f"the pull of {digest} was stopped; its bytes are kept")
