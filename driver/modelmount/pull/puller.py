"""The Puller: at most one job per model and selection in this process, any number of callers on it.

A job's thread does, in order: record and lock, verdicts, manifest and layout, reservation, blobs (small first, then in
loader order), unpacking, tree. Other processes on the same root are met at the ingest locks: a job tries, skips what is
busy, and waits for a busy one only when it holds none.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from modelmount import telemetry
from modelmount.config import Settings
from modelmount.content import ingest as ingests
from modelmount.content.diskerrors import disk_error
from modelmount.content.pulls import Claim, PullRecord
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, Cancelled, Internal, ModelMountError, NoSpace, Unavailable
from modelmount.formats.selection import Selection
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.pull import possession, verdicts
from modelmount.pull.connections import Connections
from modelmount.pull.job import Job, State
from modelmount.pull.neighbours import Neighbours
from modelmount.pull.peek import peek
from modelmount.pull.plan import Plan, make_plan
from modelmount.pull.progress import PULL_PHASES, Phase, Snapshot
from modelmount.pull.resolver import Model, Resolver, not_here
from modelmount.pull.transfer import Transfer
from modelmount.registry.credentials import Credential
from modelmount.snapshots import talk
from modelmount.snapshots import tree as trees
from modelmount.snapshots.tree import Tree
from modelmount.sources.base import BlobSource

log = logging.getLogger(__name__)

SourceFactory = Callable[[Model, Callable[[], Credential], Callable[[], bool]], BlobSource]
"""Makes the source of a model's blobs. The first callable yields the newest proved credential at each open, the second
says whether anybody waits for the blobs.
"""

_Key = tuple[str, str, str, bool]


class Admits(Protocol):
    """Decides whether a pull may start: `cache.admission.Admission`."""

    def admit(
        self, record: PullRecord, claims: Sequence[Claim], model_bytes: int, cancelled: Callable[[], bool]
    ) -> None:
        """Reserve what `claims` still need, of a model of so many bytes, or raise NoSpace and reserve nothing."""


class Puller:
    """Owns the jobs. `ensure` joins or starts one; `release` says that a lease now holds its tree; `stop` cancels all
    and keeps their bytes.
    """

    def __init__(
        self, store: Store, resolver: Resolver, source: SourceFactory, admission: Admits, settings: Settings
    ) -> None:
        """No thread runs until the first job."""
        self._store, self._resolver, self._source, self._settings = store, resolver, source, settings
        self._admission = admission
        self._connections = Connections(
            settings.pull.connections,
            lambda registry: settings.registry(registry).connections,
            others=Neighbours(store),
        )
        self._lock = threading.Lock()
        self._jobs: dict[_Key, tuple[Job, PullRecord]] = {}
        self._janitor: threading.Thread | None = None
        self._stopping = threading.Event()
        telemetry.pull_bytes_left.set_function(lambda: sum(s.bytes_total - s.bytes_done for s in self._running()))
        telemetry.pull_files_left.set_function(lambda: sum(len(s.files) - s.files_ready for s in self._running()))
        for phase in PULL_PHASES:
            telemetry.pulls_by_phase.labels(phase).set_function(functools.partial(self._in_phase, phase))
        telemetry.pull_bytes_per_second.set_function(lambda: sum(s.rate for s in self._running()))

    def ensure(
        self,
        model: Model,
        selection: Selection,
        credential: Credential,
        *,
        fetch: bool = True,
        prefetch: bool = False,
        namespace: str = "",
    ) -> Job:
        """The job for `model`: the one that runs or just ended well, or a new one. The caller has proved its own
        access. Without `fetch` it links what is here and asks no source for anything; something missing is a
        Precondition then. A `prefetch` leaves nothing in the page cache, as long as only prefetches want the job. A new
        one is that of `namespace`, and stays so whoever joins.
        """
        job = Job(model, selection, credential, fetches=fetch, prefetches=prefetch, namespace=namespace)
        key = _key(job)
        with self._lock:
            if self._stopping.is_set():
                raise Cancelled("the driver is stopping; the next one goes on from here")
            existing = self._jobs.get(key)
            if existing is not None and existing[0].state is not State.FAILED:
                existing[0].join(credential, prefetch=prefetch)
                return existing[0]
            whole = Claim.of_manifest(model.manifest, model.repository.scope, namespace)
            record = PullRecord.open(self._store, [whole])
            try:
                self._start(key, job, record)
            except RuntimeError as e:  # the node, or the driver's pod, has as many as it may have
                record.close()
                raise Unavailable(
                    f"the pull of {model} got no thread; the driver's pod may need a higher limit of processes"
                ) from e
            return job

    def head(self, model: Model, credential: Credential, descriptor: Descriptor, count: int) -> bytes | None:
        """The first bytes of a blob, `count` at most, as its source sends them: not verified. None where it sends less.
        Blocks within the source's own limits, and raises what it does.
        """
        return peek(self._source(model, lambda: credential, lambda: True), descriptor, 0, min(count, descriptor.size))

    def release(self, job: Job) -> None:
        """A lease on the finished job's tree stands: the job need not hold it any longer."""
        key = _key(job)
        with self._lock:
            current = self._jobs.get(key)
            if current is None or current[0] is not job or job.state is State.RUNNING:
                return
            del self._jobs[key]
        current[1].close()

    def jobs(self) -> list[Job]:
        """The jobs that run or are kept."""
        with self._lock:
            return [job for job, _ in self._jobs.values()]

    def _running(self) -> list[Snapshot]:
        return [job.snapshot() for job in self.jobs() if job.state is State.RUNNING]

    def _in_phase(self, phase: Phase) -> int:
        return sum(snapshot.phase == phase for snapshot in self._running())

    def stop(self, timeout: float = 10.0) -> None:
        """Cancel every job; their bytes stay. Waits up to `timeout` seconds for their threads to let go."""
        self._stopping.set()
        for job in self.jobs():
            job.cancel.set()
        deadline = time.monotonic() + timeout
        for job in self.jobs():
            job.ended.wait(max(0.0, deadline - time.monotonic()))
        with self._lock:
            ended = [(key, record) for key, (job, record) in self._jobs.items() if job.state is not State.RUNNING]
            for key, _ in ended:
                del self._jobs[key]
        for _, record in ended:
            record.close()

    def _start(self, key: _Key, job: Job, record: PullRecord) -> None:
        if self._janitor is None:
            janitor = threading.Thread(target=self._expire, name="pull-janitor", daemon=True)
            janitor.start()
            self._janitor = janitor
        name = f"pull-{job.model.manifest.hex[:12]}"
        self._jobs[key] = (job, record)
        try:
            threading.Thread(target=self._run, args=(key, job, record), name=name, daemon=True).start()
        except RuntimeError:
            del self._jobs[key]
            raise

    # -- a job's thread

    def _run(self, key: _Key, job: Job, record: PullRecord) -> None:
        telemetry.jobs_running.inc()
        outcome: Tree | ModelMountError
        with telemetry.context(model=str(job.model)):
            try:
                outcome = self._pull(job, record)
                log.info("model ready", extra={"fields": {"bytes": outcome.bytes, "files": outcome.files}})
            except ModelMountError as e:
                log.warning("pull ended: %s", e)
                outcome = e
            except OSError as e:
                log.exception("pull failed on the node's file system")
                outcome = disk_error(e, f"pull {job.model}")
            except Exception:  # the job's thread ends here, and its callers must not wait for ever
                log.exception("pull failed unexpectedly")
                outcome = Internal(f"pulling {job.model} failed unexpectedly; look at the driver's log")
            finally:
                telemetry.jobs_running.dec()
            self._end(key, job, record, outcome)

    def _end(self, key: _Key, job: Job, record: PullRecord, outcome: Tree | ModelMountError) -> None:
        """Tell whoever waits; a failed job is forgotten."""
        telemetry.pulls_total.labels(outcome.reason if isinstance(outcome, ModelMountError) else telemetry.PULLED).inc()
        if isinstance(outcome, ModelMountError):
            with self._lock:
                if self._jobs.get(key, (None,))[0] is job:
                    del self._jobs[key]
            record.close()
        job.finish(outcome)

    def _pull(self, job: Job, record: PullRecord) -> Tree:
        model = job.model
        limits, selection = self._settings.limits, job.selection.key
        verdicts.check(self._store, model.manifest, limits, selection)
        try:
            return self._pull_unjudged(job, record)
        except BadArtifact as e:
            verdicts.remember(self._store, model.manifest, limits, selection, e)
            raise

    def _pull_unjudged(self, job: Job, record: PullRecord) -> Tree:
        store, model = self._store, job.model
        scope = model.repository.scope
        manifest = self._resolver.manifest(model, job.credential)
        source = self._source(model, lambda: job.credential, lambda: job.is_awaited)
        transfer = Transfer(store, scope, source, job, self._settings, self._connections)
        config = transfer.config(manifest)
        before = sum(source.elsewhere.values())
        plan = make_plan(manifest, config, self._settings.limits, job.selection, _revision(model))
        verdicts.record_facts(store, plan.facts(model.manifest), job.namespace)
        _warn(plan.layout.warnings)
        try:
            while True:
                self._fetch_missing(transfer, source, plan, record, job)
                job.progress.enter("linking")
                with store.locks.shared():
                    placement = plan.placement(store, scope)
                    if placement is not None:
                        _warn(placement.warnings)
                        return trees.build(store, scope, model.manifest, job.selection.key, placement)
                log.warning("content vanished before it was linked; fetching it again")
        finally:
            others = source.elsewhere
            own = job.progress.fetched_bytes - (sum(others.values()) - before)
            verdicts.note_sources(store, model.manifest, {source.name: own, **others})

    def _fetch_missing(self, transfer: Transfer, source: BlobSource, plan: Plan, record: PullRecord, job: Job) -> None:
        missing = plan.missing(self._store, transfer.scope)
        if job.fetches and self._settings.registry(job.model.repository.registry).sharing == "proof":
            missing = possession.take_over(self._store, transfer.scope, source, missing, job.cancel)
        if not job.fetches and any(part.needs_bytes(self._store, transfer.scope) for part in missing):
            raise not_here(job.model)
        if any(part.form == ingests.UNPACKED for part in missing):
            talk.prepare()
        job.progress.expect(part.expected for part in plan.parts)
        absent = {part.key for part in missing}
        for part in (part for part in plan.parts if part.key not in absent):
            job.progress.file(part.key).found()
            telemetry.blobs_total.labels("found").inc()
        # What is present is named too: it costs no space, and a sweep spares only what is named.
        whole = Claim.of_manifest(job.model.manifest, transfer.scope, job.namespace)
        claims = [whole, *plan.claims(transfer.scope)]
        self._admission.admit(record, claims, plan.total_bytes, job.cancel)
        for document in plan.documents:
            self._store.put_document(document, Digest.of(document), transfer.scope)
        if missing:
            try:
                transfer.run(missing)
            except NoSpace as e:  # somebody else took what was reserved
                raise NoSpace(f"{e.message}: {record.shortage()}") from e

    # -- janitor

    def _expire(self) -> None:
        """Stop jobs nobody asks for, forget finished ones nobody took; their bytes stay on disk."""
        limit = self._settings.pull.idle_seconds
        while not self._stopping.wait(min(5.0, limit / 4)):
            with self._lock:
                idle = [(key, job, record) for key, (job, record) in self._jobs.items() if job.idle_seconds > limit]
                for key, job, _ in idle:
                    if job.state is not State.RUNNING:
                        del self._jobs[key]
            for _, job, record in idle:
                if job.state is State.RUNNING:
                    log.info("nobody asked for %s for %.0f s: its pull stops, its bytes stay", job.model, limit)
                    job.cancel.set()
                else:
                    record.close()


def _key(job: Job) -> _Key:
    return job.model.repository.scope, str(job.model.manifest), job.selection.key, job.fetches


def _revision(model: Model) -> str:
    """As long as a commit of git, which is what revisions are elsewhere."""
    return model.manifest.hex[:40]


def _warn(warnings: Iterable[str]) -> None:
    """What the artifact's publisher should know and a mount doesn't depend on."""
    for warning in warnings:
        log.warning("%s", warning)
