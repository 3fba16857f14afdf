"""The missing parts of one model, fetched by threads of its own: a slow registry slows nobody else's job.

Parts are begun in the plan's order, small ones several at a time; when connections turn out to be slow, more of them
are made, and a large blob is divided among those that have nothing else to do. An ingest that somebody else holds is
skipped and waited for at the end, when this job holds none.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Final

from modelmount import formats, telemetry
from modelmount.config import Settings
from modelmount.content import ingest as ingests
from modelmount.content.backoff import Backoff
from modelmount.content.diskerrors import translated
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, Cancelled, IntegrityError, ModelMountError, Unavailable
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.manifest import MAX_DOCUMENT_BYTES, Manifest
from modelmount.pull import fetch, pages, smalls
from modelmount.pull.connections import Connections
from modelmount.pull.fetch import Cancel, Download, Line
from modelmount.pull.governor import Governor
from modelmount.pull.job import Job
from modelmount.pull.plan import SMALL_BYTES, Part
from modelmount.pull.progress import Counters, Expected, Progress
from modelmount.pull.resolver import not_here
from modelmount.pull.segments import Segment
from modelmount.pull.unpacking import Layering, Scattering, Stream, Unpacking, fill
from modelmount.snapshots import unpack
from modelmount.sources.base import BlobSource
from modelmount.system.lock import Held, LockCancelled, LockTimeout

FIRST_CONNECTIONS: Final = 4
"""Connections that a job with that many parts begins with."""
TICK_SECONDS: Final = 0.1
"""How often the number of connections is thought over."""
WORTH_SECONDS: Final = 1.0
"""A connection's work is divided only while the job will take longer than this."""
SEGMENT_SECONDS: Final = 1.0
SEGMENT_BYTES: Final = (8 << 20, 64 << 20)
"""A divided blob's segments take about this long, within these bounds: few requests, and little lost with one."""
LAST_SECONDS: Final = 0.15
"""Segments become shorter towards the end, to so much, so that all connections end together."""
LARGE_BLOBS: Final = max(2, min(4, os.cpu_count() or 1))
"""Large blobs that are fetched side by side: each has a hasher, and more than there are processors bring nothing."""
LAGGARD_SECONDS: Final = 5.0
LAGGARD_SHARE: Final = 0.1
"""A connection that brings less than this share of what they bring on average, for so long, is made anew."""


@dataclass(slots=True, eq=False)
class _Active:
    """A part in transfer. `owners` threads are at it; the last one to leave an ended download ends it."""

    part: Part
    download: Download
    layering: Layering | None = None
    owners: int = 0
    ending: bool = False


@dataclass(frozen=True, slots=True)
class _Share:
    """A segment of a download that is under way; its thread is counted among the owners."""

    active: _Active
    segment: Segment


_Work = list[Part] | tuple[Part, Held | None] | _Share
"""Small parts, a part to begin (its lock, where the job waited for it), or a share of one."""


class Transfer:
    """One job's fetching. `run` returns when every part is committed, or raises the first error after all threads let
    go.
    """

    def __init__(
        self, store: Store, scope: str, source: BlobSource, job: Job, settings: Settings, connections: Connections
    ) -> None:
        """Nothing starts yet. `connections` are the node's, shared with other jobs."""
        self.store, self.scope = store, scope
        self._source, self._job, self._settings = source, job, settings
        self._connections = connections.share(source.name, lambda: job.is_awaited)
        self._cancel = Cancel(job.cancel)
        self._changed = threading.Condition()
        self._queue: deque[tuple[Part, Held | None]] = deque()
        self._busy: list[Part] = []
        self._active: list[_Active] = []
        self._opening = 0
        self._threads = self._idle = 0
        self._quiet_until = 0.0
        self._error: BaseException | None = None
        self._governor = Governor(1, 1)

    def config(self, manifest: Manifest) -> bytes | None:
        """The artifact's config, downloaded once by this scope; None where its format doesn't read it."""
        descriptor = manifest.config
        if descriptor is None or not formats.reads_config(manifest):
            return None
        if descriptor.data is not None:
            return descriptor.data
        if self.store.has_blob(descriptor.digest, self.scope):
            return self.store.read_document(descriptor.digest)
        if not self._job.fetches:
            raise not_here(self._job.model)
        data = self._read_document(descriptor)
        self.store.put_document(data, descriptor.digest, self.scope)
        return data

    def run(self, parts: Sequence[Part]) -> None:
        """Fetch `parts`, several at a time."""
        self._queue.extend((part, None) for part in parts)
        self._governor = Governor(min(FIRST_CONNECTIONS, len(parts)), self._connections.most)
        self._drive()
        for part in self._busy:
            if self._error is None:
                held = self._acquire(part, wait=True)
                if held is not None:
                    self._queue.append((part, held))
                    self._drive()
        for _, held in self._queue:
            if held is not None:
                held.release()
        if self._error is not None:
            raise self._error
        if self._queue or self._cancel():  # the job was cancelled before anybody took these
            raise fetch.stopped(self._job.model)

    # -- the job's own thread: how many connections

    def _drive(self) -> None:
        """Run threads until nothing is left to do for them."""
        ticks = _Ticks(self._job)
        threads: list[threading.Thread] = []
        while True:
            with self._changed:
                wanted = self._governor.wanted if self._has_work() else 0
                more = max(0, wanted - self._threads)
            threads += [thread for _ in range(more) if (thread := self._spawn()) is not None]
            with self._changed:
                if self._threads == 0 and not self._has_work():
                    break
                self._changed.wait(TICK_SECONDS)
                busy = self._threads - self._idle
            if self._job.prefetches:
                self._drop_pages()
            came = ticks.came(busy)
            if came is not None:
                self._governor.observe(came.rate, busy, came.ours)
                for segment in ticks.laggards(self._owned(), busy):
                    segment.give_up()
            self._check()
            if self._connections.is_wanted:
                self._interrupt_one()
            if self._cancel():
                for segment in self._owned():
                    segment.give_up()
        for thread in threads:
            thread.join()
        for active in self._active:  # cancelled when nobody was at them
            try:
                self._end(active, complete=False)
            except Exception as e:  # noqa: BLE001 - `run` raises it when the others are ended too
                self._fail(e)
        self._active.clear()

    def _drop_pages(self) -> None:
        with self._changed:
            downloads = [active.download for active in self._active]
        for download in downloads:
            if spent := download.spent:
                pages.drop(download.ingest.path, spent)

    def _drop_small_pages(self, parts: Sequence[Part]) -> None:
        for part in parts:
            digest = part.descriptor.digest
            if part.form == ingests.RAW:
                pages.drop(self.store.blob_path(digest))
            else:
                pages.drop_layer(self.store.unpacked_path(digest, unpack.rules(part.encoding)))

    def _has_work(self) -> bool:
        return bool(not self._cancel() and (self._queue or self._opening or self._active))

    def _spawn(self) -> threading.Thread | None:
        """One more thread, when the node has a connection left; the first one of a job always has."""
        with self._changed:
            if not self._connections.acquire(wait=self._threads == 0, cancelled=self._cancel):
                return None
            self._threads += 1
        name = f"fetch-{self._job.model.manifest.hex[:8]}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the node, or the driver's pod, has as many as it may have
            self._connections.release()
            with self._changed:
                self._threads -= 1
                alone = self._threads == 0
            if alone:
                self._fail(
                    Unavailable(
                        f"the pull of {self._job.model} got no thread; the driver's pod may need a higher limit of "
                        "processes"
                    )
                )
            return None
        return thread

    def _check(self) -> None:
        with self._changed:
            actives = [active for active in self._active if not active.ending]
        try:
            for active in actives:
                active.download.check()
        except ModelMountError as e:
            self._fail(e)

    def _owned(self) -> list[Segment]:
        with self._changed:
            return [segment for active in self._active for segment in active.download.segments.owned]

    def _interrupt_one(self) -> None:
        """Have the thread with the longest way to go look up from its segment: its connection may be for another job.
        What it fetched stays, and the rest is anybody's.
        """
        segments = self._owned()
        if segments and not any(segment.leave for segment in segments):
            max(segments, key=lambda segment: segment.missing).leave = True

    # -- one fetching thread

    def _work(self) -> None:
        try:
            line = Line()
            with telemetry.context(model=str(self._job.model)):
                while (work := self._next()) is not None:
                    try:
                        self._rest(self._do(work, line))
                    except BaseException as e:  # noqa: BLE001 - `run` raises it in the job's own thread
                        self._fail(e)
        finally:
            self._connections.release()

    def _next(self) -> _Work | None:
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
                        return _Share(active, segment)
                if self._divide():
                    continue
                self._wait()
            self._threads -= 1
            self._changed.notify_all()
            return None

    def _is_needed(self) -> bool:
        """Whether a thread that has nothing to do at the moment should stay."""
        return self._has_work() and self._threads <= self._governor.wanted

    def _rest(self, seconds: float) -> None:
        """Ask nothing for a while, after a failure; what the thread was at is free for others."""
        until = time.monotonic() + seconds
        with self._changed:
            while time.monotonic() < until and self._is_needed() and not self._connections.is_wanted:
                self._wait(until)

    def _wait(self, until: float | None = None) -> None:
        """Be idle until something changes, a tick at most, and not (much) beyond `until`. The caller has `_changed`."""
        left = TICK_SECONDS if until is None else min(TICK_SECONDS, until - time.monotonic())
        self._idle += 1
        self._changed.wait(max(0.0, left))
        self._idle -= 1

    def _complained(self, wait: float | None) -> None:
        """The source is asked too much: fewer connections, and none asks anything new for `wait` seconds."""
        with self._changed:
            self._governor.complain(self._threads - self._idle)
            if wait is not None:
                self._quiet_until = max(self._quiet_until, time.monotonic() + wait)
            self._changed.notify_all()

    def _small_group(self) -> list[Part]:
        """The small parts at the head of the queue, this thread's share of them."""
        most = max(1, min(smalls.GROUP_FILES, len(self._queue) // max(1, self._threads)))
        found: list[Part] = []
        size = 0
        while self._queue and len(found) < most:
            part, held = self._queue[0]
            size += part.descriptor.size
            if held is not None or not smalls.fits(part) or (found and size > smalls.GROUP_BYTES):
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
        each = self._governor.rate / max(1, self._threads)
        free = sum(active.download.segments.free_bytes for active in self._active)
        length = max(each * LAST_SECONDS, min(each * SEGMENT_SECONDS, free / max(1, self._threads)))
        return int(max(SEGMENT_BYTES[0], min(length, SEGMENT_BYTES[1])))

    def _divide(self) -> bool:
        """Take from somebody who has much left, if connections are slow and the job would take long as it is."""
        if not self._governor.may_split:
            return False
        length = int(max(SEGMENT_BYTES[0], self._governor.rate / max(1, self._threads) * SEGMENT_SECONDS))
        snapshot = self._job.snapshot()
        if snapshot.bytes_total - snapshot.bytes_done < self._governor.rate * WORTH_SECONDS:
            return False
        return any(active.download.share(length) for active in self._active if not active.ending)

    def _do(self, work: _Work, line: Line) -> float:
        """The seconds for which this thread should ask nothing."""
        if isinstance(work, _Share):
            return self._fetch(work.active, work.segment, line)
        active = None
        try:
            if isinstance(work, list):
                group = self._group(self._job.progress)
                busy = group.fetch(work)
                if self._job.prefetches:
                    self._drop_small_pages(group.fetched)
                with self._changed:
                    self._busy += busy
            else:
                active = self._begin(*work)
        finally:
            with self._changed:
                self._opening -= 1
                self._changed.notify_all()
        if active is None:
            return 0.0
        return self._fetch(active, active.download.take(self._segment_length()), line)

    def _fetch(self, active: _Active, segment: Segment | None, line: Line) -> float:
        try:
            return 0.0 if segment is None else active.download.fetch(segment, line)
        finally:
            self._leave(active, segment)

    def _begin(self, part: Part, held: Held | None) -> _Active | None:
        """Open the part's download, with this thread as its first owner; None when somebody else has it, or did it."""
        held = held or self._acquire(part, wait=False)
        if held is None:
            return None
        descriptor = part.descriptor
        try:
            present = part.present(self.store, self.scope)
        except BaseException:
            held.release()
            raise
        if present:  # somebody else finished it while we waited
            held.release(unlink=True)
            self._job.progress.file(part.key).found()
            telemetry.blobs_total.labels("shared").inc()
            return None
        scattering = Scattering(part, self._settings.limits) if part.is_scattered else None
        ingest = Ingest.open(
            self.store,
            descriptor.digest,
            descriptor.size,
            self.scope,
            part.form,
            held,
            body=scattering.body if scattering is not None else None,
            cancelled=self._cancel,
        )
        try:
            if part.form == ingests.UNPACKED and self.store.has_blob(descriptor.digest, self.scope):
                self._job.progress.file(part.key).have(descriptor.size)
                self._unpack_blob(ingest, part, scattering)
                return None
            backoff = Backoff(self.store, descriptor.digest, self.scope, self._source.name)
            download = Download(
                ingest,
                descriptor,
                self._source,
                backoff,
                self._job.progress.file(part.key),
                self._cancel,
                complained=self._complained,
            )
        except BaseException:
            ingest.close()
            raise
        active = _Active(part, download, scattering, owners=1)
        try:
            if part.form == ingests.UNPACKED and scattering is None:
                active.layering = self._unpack(ingest, part, download.stream)
        except BaseException:
            self._end(active, complete=False)
            raise
        with self._changed:
            self._active.append(active)
            self._changed.notify_all()
        return active

    def _leave(self, active: _Active, segment: Segment | None) -> None:
        """This thread is done with the download for now; the last one of an ended download ends it."""
        with self._changed:
            if segment is not None:
                active.download.finish(segment)
            active.owners -= 1
            complete = active.download.segments.is_complete
            ended = complete or active.download.is_broken or self._cancel()
            if active.owners or active.ending or not ended:
                self._changed.notify_all()
                return
            active.ending = True
            self._changed.notify_all()
        try:
            self._end(active, complete=complete)
        finally:
            with self._changed:
                self._active.remove(active)
                self._changed.notify_all()

    def _end(self, active: _Active, *, complete: bool) -> None:
        download = active.download
        again = False
        # Each of these whatever becomes of the others: a lock that stays would stop every later job.
        with ExitStack() as ending:
            ending.callback(download.ingest.close)
            ending.callback(download.close)
            if active.layering is not None:
                ending.callback(active.layering.stop)
            if complete and not download.is_broken and not (again := self._is_elsewhere(download)):
                if active.layering is not None:
                    self._commit_layer(download.ingest, active.part, active.layering)
                else:
                    with pages.dropped(download.ingest.path) if self._job.prefetches else nullcontext():
                        download.ingest.commit_blob()
                    self._job.progress.file(active.part.key).ready()
        if again:
            with self._changed:
                self._queue.append((active.part, None))

    @staticmethod
    def _is_elsewhere(download: Download) -> bool:
        """Verify what came; whether it is wrong, and right bytes may come from another source."""
        try:
            download.verify()
        except IntegrityError:
            if not download.is_elsewhere:
                raise
        return download.is_elsewhere

    def _fail(self, error: BaseException) -> None:
        """The first error counts; what others then say of being cancelled doesn't."""
        with self._changed:
            if self._error is None or isinstance(self._error, Cancelled):
                self._error = error
            self._cancel.set()
            self._changed.notify_all()

    # -- parts

    def _acquire(self, part: Part, *, wait: bool) -> Held | None:
        lock = self.store.lock("ingest-" + ingests.name(part.descriptor.digest, self.scope, part.form))
        try:
            return lock.acquire(timeout=None if wait else 0, cancelled=self._cancel)
        except LockTimeout:
            with self._changed:
                self._busy.append(part)
            return None
        except LockCancelled as e:
            raise fetch.stopped(self._job.model) from e

    def _unpack(self, ingest: Ingest, part: Part, source: Callable[[Cancel], Stream]) -> Unpacking:
        return Unpacking(ingest, part, source, self._settings.limits, self._cancel)

    def _group(self, progress: Progress) -> smalls.Group:
        limits = self._settings.limits
        return smalls.Group(self.store, self.scope, self._source, progress, self._cancel, limits, self._complained)

    def _unpack_blob(self, ingest: Ingest, part: Part, scattering: Scattering | None) -> None:
        """The archive is in the store: make its layer without asking anybody."""
        raw = self.store.blob_path(part.descriptor.digest)
        if scattering is None:
            self._commit_layer(ingest, part, self._unpack(ingest, part, lambda cancel: raw.open("rb", buffering=0)))
            return
        with translated(f"unpack {part.descriptor.digest}"), raw.open("rb", buffering=0) as file:
            fill(ingest, file, self._cancel)
        self._commit_layer(ingest, part, scattering)

    def _commit_layer(self, ingest: Ingest, part: Part, layering: Layering) -> None:
        """The archive is verified: wait for its layer and commit that; the archive goes."""
        try:
            layer = layering.finish()
            with pages.layer_dropped(layer) if self._job.prefetches else nullcontext():
                ingest.commit_unpacked(layer, unpack.rules(part.encoding))
        except (BadArtifact, IntegrityError):
            ingest.discard()
            raise
        finally:
            ingest.close()
        self._job.progress.file(part.key).ready()

    def _read_document(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > MAX_DOCUMENT_BYTES:
            raise BadArtifact(
                f"the config {descriptor.digest} declares {descriptor.size} bytes; at most {MAX_DOCUMENT_BYTES} are "
                "read"
            )
        nobodys = Counters(Progress(), Expected((str(descriptor.digest), ingests.RAW), "config", descriptor.size))
        return self._group(Progress()).read(descriptor, nobodys)


@dataclass(frozen=True, slots=True)
class _Came:
    """Bytes a second, and the share of the time in which receiving threads were at work on them."""

    rate: float
    ours: float


class _Ticks:
    """What came since the last look, of the job and of single segments."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._at = self._segments_at = time.monotonic()
        self._bytes = self._segments_bytes = job.progress.fetched_bytes
        self._worked = job.progress.worked_seconds
        self._warm = False
        self._positions: dict[Segment, int] = {}

    def came(self, busy: int) -> _Came | None:
        """What `busy` threads brought since it was last asked; None when that is too short ago to tell, and until bytes
        have come for the first time: before, connections were still being made.
        """
        progress = self._job.progress
        now, count, worked = time.monotonic(), progress.fetched_bytes, progress.worked_seconds
        span = now - self._at
        if span < TICK_SECONDS:
            return None
        came = _Came((count - self._bytes) / span, (worked - self._worked) / (span * max(1, busy)))
        self._at, self._bytes, self._worked = now, count, worked
        warm, self._warm = self._warm, self._warm or came.rate > 0
        return came if warm else None

    def laggards(self, segments: Sequence[Segment], busy: int) -> list[Segment]:
        """Of `segments`, which `busy` threads are at, those that brought far less than their share of what came in the
        last LAGGARD_SECONDS. Only now and then; most segments don't last that long, and then aren't slow.
        """
        now, count = time.monotonic(), self._job.progress.fetched_bytes
        if now - self._segments_at < LAGGARD_SECONDS:
            return []
        least = LAGGARD_SHARE * (count - self._segments_bytes) / max(1, busy)
        before, self._positions = self._positions, {segment: segment.position for segment in segments}
        self._segments_at, self._segments_bytes = now, count
        return [each for each in segments if each in before and each.position - before[each] < least]
