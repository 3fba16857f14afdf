"""The missing parts of one model, fetched by threads of its own: a slow registry slows nobody else's job.

What each thread does next is the schedule's business, how a part begins and ends that of `parts`. An ingest that
somebody else holds is skipped and waited for at the end, when this job holds none.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from modelmount import formats, telemetry
from modelmount.config import Settings
from modelmount.content import ingest as ingests
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, ModelMountError, Unavailable
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.manifest import MAX_DOCUMENT_BYTES, Manifest
from modelmount.pull import fetch, pages, smalls
from modelmount.pull.connections import Connections
from modelmount.pull.fetch import Cancel, Line
from modelmount.pull.job import Job
from modelmount.pull.parts import Active, Parts
from modelmount.pull.plan import Part
from modelmount.pull.progress import Counters, Expected, Progress
from modelmount.pull.rates import Rates
from modelmount.pull.resolver import not_here
from modelmount.pull.schedule import Schedule, Slice, Work
from modelmount.pull.segments import Segment
from modelmount.sources.base import BlobSource


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
        self._schedule = Schedule(job, self._connections, self._cancel)
        self._parts = Parts(store, scope, source, job, settings, self._cancel, self._schedule.complained)

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
        schedule = self._schedule
        schedule.begin(parts)
        self._drive()
        while busy := schedule.take_busy():
            for part in busy:
                if schedule.error is None:
                    self._job.progress.file(part.key).elsewhere()
                    schedule.add(part, self._parts.wait(part))
                    self._drive()
        left = schedule.release_queue()
        if schedule.error is not None:
            raise schedule.error
        if left or self._cancel():  # the job was cancelled before anybody took these
            raise fetch.stopped(self._job.model)

    # -- the job's own thread

    def _drive(self) -> None:
        """Run threads until nothing is left to do for them."""
        rates = Rates(self._job.progress)
        threads: list[threading.Thread] = []
        while True:
            threads += [thread for _ in range(self._schedule.vacancies) if (thread := self._spawn()) is not None]
            if self._schedule.is_over():
                break
            self._schedule.look(rates)
            if self._job.prefetches:
                self._drop_pages()
            self._check()
            if self._cancel():
                for segment in self._schedule.segments():
                    segment.give_up()
        for thread in threads:
            thread.join()
        for active in self._schedule.take_active():  # cancelled when nobody was at them
            try:
                self._parts.end(active, complete=False)
            except Exception as e:  # noqa: BLE001 - `run` raises it when the others are ended too
                self._schedule.fail(e)

    def _spawn(self) -> threading.Thread | None:
        """One more thread, when there is a connection for it."""
        if not self._schedule.hire():
            return None
        name = f"fetch-{self._job.model.manifest.hex[:8]}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the node, or the driver's pod, has as many as it may have
            if self._schedule.dismiss():
                self._schedule.fail(
                    Unavailable(
                        f"the pull of {self._job.model} got no thread; the driver's pod may need a higher limit of "
                        "processes"
                    )
                )
            return None
        return thread

    def _drop_pages(self) -> None:
        for active in self._schedule.actives():
            if spent := active.download.spent:
                pages.drop(active.download.ingest.path, spent)

    def _check(self) -> None:
        try:
            for active in self._schedule.actives():
                active.download.check()
        except ModelMountError as e:
            self._schedule.fail(e)

    # -- one fetching thread

    def _work(self) -> None:
        schedule = self._schedule
        try:
            line = Line()
            with telemetry.context(model=str(self._job.model)):
                while (work := schedule.next()) is not None:
                    try:
                        schedule.rest(self._do(work, line))
                    except BaseException as e:  # noqa: BLE001 - `run` raises it in the job's own thread
                        schedule.fail(e)
        finally:
            self._connections.release()

    def _do(self, work: Work, line: Line) -> float:
        """The seconds for which this thread should ask nothing."""
        if isinstance(work, Slice):
            return self._fetch(work.active, work.segment, line)
        active: Active | None = None
        segment: Segment | None = None
        busy: Sequence[Part] = ()
        try:
            if isinstance(work, list):
                busy = self._fetch_group(work)
            else:
                part, held = work
                held = held or self._parts.lock(part)
                if held is None:
                    busy = [part]
                else:
                    active = self._parts.begin(part, held)
        finally:
            segment = self._schedule.opened(active, busy)
        return 0.0 if active is None else self._fetch(active, segment, line)

    def _fetch(self, active: Active, segment: Segment | None, line: Line) -> float:
        try:
            return 0.0 if segment is None else active.download.fetch(segment, line)
        finally:
            complete = self._schedule.leave(active, segment)
            if complete is not None:
                self._end(active, complete=complete)

    def _end(self, active: Active, *, complete: bool) -> None:
        try:
            if self._parts.end(active, complete=complete):
                self._schedule.add(active.part)
        finally:
            self._schedule.ended(active)

    def _fetch_group(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Small parts from the first to the last; the ones that somebody else is at."""
        group = self._group(self._job.progress)
        busy = group.fetch(parts)
        if self._job.prefetches:
            self._parts.drop_pages(group.fetched)
        return busy

    def _group(self, progress: Progress) -> smalls.Group:
        limits, complained = self._settings.limits, self._schedule.complained
        return smalls.Group(self.store, self.scope, self._source, progress, self._cancel, limits, complained)

    def _read_document(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > MAX_DOCUMENT_BYTES:
            raise BadArtifact(
                f"the config {descriptor.digest} declares {descriptor.size} bytes; at most {MAX_DOCUMENT_BYTES} are "
                "read"
            )
        nobodys = Counters(Progress(), Expected((str(descriptor.digest), ingests.RAW), "config", descriptor.size))
        return self._group(Progress()).read(descriptor, nobodys)
