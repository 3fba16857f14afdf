"""How one part of a model begins and ends: lock, ingest and download before, verification and commit after. What lies
between is up to whoever has the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

from modelmount import telemetry
from modelmount.config import Settings
from modelmount.content import ingest as ingests
from modelmount.content.backoff import Backoff
from modelmount.content.diskerrors import translated
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, IntegrityError
from modelmount.pull import fetch, pages, smalls
from modelmount.pull.fetch import Cancel, Download
from modelmount.pull.job import Job
from modelmount.pull.plan import Part
from modelmount.pull.unpacking import Layering, Scattering, Stream, Unpacking, fill
from modelmount.snapshots import unpack
from modelmount.snapshots.isolated import Whole
from modelmount.sources.base import BlobSource
from modelmount.system.lock import Held, LockCancelled, LockTimeout


@dataclass(slots=True, eq=False)
class Active:
    """A part in transfer. `owners` threads are at it; the last one to leave an ended download ends it."""

    part: Part
    download: Download
    layering: Layering | None = None
    owners: int = 0
    ending: bool = False


class Parts:
    """One job's way from a part to what the store has of it. Thread-safe: each part is one thread's at a time."""

    def __init__(
        self,
        store: Store,
        scope: str,
        source: BlobSource,
        job: Job,
        settings: Settings,
        cancel: Cancel,
        complained: Callable[[float | None], None],
    ) -> None:
        """Nothing starts yet. `complained` is called as by `fetch.Download`."""
        self._store, self._scope, self._source, self._job = store, scope, source, job
        self._settings, self._cancel, self._complained = settings, cancel, complained

    def lock(self, part: Part) -> Held | None:
        """The lock of the part's ingest; None where somebody else has it. Raises Cancelled."""
        try:
            return self._acquire(part, timeout=0)
        except LockTimeout:
            return None

    def wait(self, part: Part) -> Held | None:
        """Wait until nobody else is at the part. The lock of its ingest; None for a small one, which has none of its
        own. Raises Cancelled.
        """
        if not smalls.fits(part):
            return self._acquire(part, timeout=None)
        smalls.wait(self._store, self._scope, part, self._cancel)
        return None

    def _acquire(self, part: Part, timeout: float | None) -> Held:
        lock = self._store.lock("ingest-" + ingests.name(part.descriptor.digest, self._scope, part.form))
        try:
            return lock.acquire(timeout=timeout, cancelled=self._cancel)
        except LockCancelled as e:
            raise fetch.stopped(self._job.model) from e

    def begin(self, part: Part, held: Held) -> Active | None:
        """Open the part's download, with the caller as its first owner; None when it is here, or was made of what is.
        Takes `held` over, also when it raises.
        """
        descriptor = part.descriptor
        try:
            present = part.present(self._store, self._scope)
        except BaseException:
            held.release()
            raise
        if present:  # somebody else finished it while we waited
            held.release(unlink=True)
            self._job.progress.file(part.key).found()
            telemetry.blobs_total.labels("shared").inc()
            return None
        scattering = Scattering(part, self._settings.limits, self._cancel) if part.is_scattered else None
        ingest = Ingest.open(
            self._store,
            descriptor.digest,
            descriptor.size,
            self._scope,
            part.form,
            held,
            body=scattering.body if scattering is not None else None,
            cancelled=self._cancel,
        )
        try:
            if part.form == ingests.UNPACKED and self._store.has_blob(descriptor.digest, self._scope):
                self._job.progress.file(part.key).have(descriptor.size)
                self._unpack_blob(ingest, part, scattering)
                return None
            download = Download(
                ingest,
                descriptor,
                self._source,
                Backoff(self._store, descriptor.digest, self._scope, self._source.name),
                self._job.progress.file(part.key),
                self._cancel,
                complained=self._complained,
            )
        except BaseException:
            ingest.close()
            raise
        active = Active(part, download, scattering, owners=1)
        try:
            if part.form == ingests.UNPACKED and scattering is None:
                active.layering = self._unpack(ingest, part, download.stream)
        except BaseException:
            self.end(active, complete=False)
            raise
        return active

    def end(self, active: Active, *, complete: bool) -> bool:
        """Verify and commit a `complete` download; of any other the bytes are kept. Whether the bytes were wrong and
        can be had from somewhere else: then the part begins anew. Nobody is at it any more.
        """
        download = active.download
        again = False
        # Each of these whatever becomes of the others: a lock that stays would stop every later job.
        with ExitStack() as ending:
            ending.callback(download.ingest.close)
            ending.callback(download.close)
            if active.layering is not None:
                ending.callback(active.layering.stop)
            if complete and not download.is_broken and not (again := _is_elsewhere(download)):
                if active.layering is not None:
                    self._commit_layer(download.ingest, active.part, active.layering)
                else:
                    with pages.dropped(download.ingest.path) if self._job.prefetches else nullcontext():
                        download.ingest.commit_blob()
                    self._job.progress.file(active.part.key).ready()
        return again

    def drop_pages(self, parts: Sequence[Part]) -> None:
        """Drop what the page cache has of committed parts."""
        for part in parts:
            digest = part.descriptor.digest
            if part.form == ingests.RAW:
                pages.drop(self._store.blob_path(digest))
            else:
                pages.drop_layer(self._store.unpacked_path(digest, unpack.rules(part.encoding)))

    # -- archives

    def _unpack(self, ingest: Ingest, part: Part, source: Callable[[Cancel], Stream]) -> Unpacking:
        return Unpacking(ingest, part, source, self._settings.limits, self._cancel)

    def _unpack_blob(self, ingest: Ingest, part: Part, scattering: Scattering | None) -> None:
        """The archive is in the store: make its layer without asking anybody."""
        raw = self._store.blob_path(part.descriptor.digest)
        if scattering is None:
            self._commit_layer(ingest, part, self._unpack(ingest, part, lambda cancel: Whole(raw)))
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


def _is_elsewhere(download: Download) -> bool:
    """Verify what came; whether it is wrong, and right bytes may come from another source."""
    try:
        download.verify()
    except IntegrityError:
        if not download.is_elsewhere:
            raise
    return download.is_elsewhere
