"""The missing parts of one model, fetched by a few threads of its own: a slow registry slows nobody else's job.

Order is the plan's. An ingest that somebody else holds is skipped and waited for at the end, when this job holds none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from modelmount import formats, telemetry
from modelmount.config import Settings
from modelmount.content import ingest as ingests
from modelmount.content.backoff import Backoff
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, Cancelled, IntegrityError
from modelmount.formats.base import Encoding
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.manifest import MAX_DOCUMENT_BYTES, Manifest
from modelmount.pull import fetch
from modelmount.pull.fetch import Cancel
from modelmount.pull.job import Job
from modelmount.pull.plan import Part
from modelmount.snapshots import layers, unpack
from modelmount.sources.base import BlobSource
from modelmount.system.lock import Held, LockCancelled, LockTimeout
from modelmount.transport.retry import Policy


class Transfer:
    """One job's fetching. `run` returns when every part is committed, or raises the first error after all threads let
    go.
    """

    def __init__(self, store: Store, scope: str, source: BlobSource, job: Job, settings: Settings) -> None:
        """Nothing starts yet."""
        self.store, self.scope = store, scope
        self._source, self._job, self._settings = source, job, settings
        self._cancel = Cancel(job.cancel)
        self._policy = Policy()
        self._lock = threading.Lock()
        self._queue: deque[Part] = deque()
        self._busy: list[Part] = []
        self._error: BaseException | None = None

    def config(self, manifest: Manifest) -> bytes | None:
        """The artifact's config, downloaded once by this scope; None where its format doesn't read it."""
        descriptor = manifest.config
        if descriptor is None or not formats.reads_config(manifest):
            return None
        if descriptor.data is not None:
            return descriptor.data
        if self.store.has_blob(descriptor.digest, self.scope):
            return self.store.read_document(descriptor.digest)
        data = self._read_document(descriptor)
        self.store.put_document(data, descriptor.digest, self.scope)
        return data

    def run(self, parts: Sequence[Part]) -> None:
        """Fetch `parts`, several at a time."""
        self._queue.extend(parts)
        count = min(self._settings.pull.connections, len(parts))
        threads = [
            threading.Thread(target=self._work, name=f"fetch-{self._job.model.manifest.hex[:8]}-{n}", daemon=True)
            for n in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for part in self._busy:
            if self._error is None:
                self._attempt(part, wait=True)
        if self._error is not None:
            raise self._error
        if self._queue:  # the job was cancelled before anybody took these
            raise Cancelled("the pull was stopped; its bytes are kept")

    # -- one thread

    def _work(self) -> None:
        with telemetry.context(model=str(self._job.model)):
            while not self._cancel():
                with self._lock:
                    if not self._queue:
                        return
                    part = self._queue.popleft()
                self._attempt(part, wait=False)

    def _attempt(self, part: Part, *, wait: bool) -> None:
        try:
            held = self._acquire(part, wait=wait)
            if held is not None:
                self._obtain(part, held)
                self._job.progress.ready()
        except BaseException as e:  # noqa: BLE001 - handed to `run`, which raises it in the job's own thread
            with self._lock:
                if self._error is None or isinstance(self._error, Cancelled):
                    self._error = e
            self._cancel.set()

    def _acquire(self, part: Part, *, wait: bool) -> Held | None:
        lock = self.store.lock("ingest-" + ingests.name(part.descriptor.digest, self.scope, part.form))
        try:
            return lock.acquire(timeout=None if wait else 0, cancelled=self._cancel)
        except LockTimeout:
            with self._lock:
                self._busy.append(part)
            return None
        except LockCancelled as e:
            raise Cancelled("the pull was stopped; its bytes are kept") from e

    def _obtain(self, part: Part, held: Held) -> None:
        descriptor = part.descriptor
        if part.present(self.store, self.scope):  # somebody else finished it while we waited
            held.release(unlink=True)
            self._job.progress.have(descriptor.size)
            telemetry.blobs_total.labels("shared").inc()
            return
        ingest = Ingest.open(
            self.store, descriptor.digest, descriptor.size, self.scope, part.form, held, cancelled=self._cancel
        )
        try:
            if part.encoding is Encoding.RAW:
                self._fetch(ingest, descriptor)
                ingest.commit_blob()
            else:
                self._unpack(ingest, part)
        finally:
            ingest.close()

    def _fetch(self, ingest: Ingest, descriptor: Descriptor) -> None:
        backoff = Backoff(self.store, descriptor.digest, self.scope, self._source.name)
        fetch.fetch(ingest, descriptor, self._source, backoff, self._job.progress, self._cancel, self._policy)

    def _unpack(self, ingest: Ingest, part: Part) -> None:
        digest = part.descriptor.digest
        source = self.store.blob_path(digest)
        if self.store.has_blob(digest, self.scope):
            self._job.progress.have(part.descriptor.size)
        else:
            self._fetch(ingest, part.descriptor)
            source = ingest.path
        half_made = ingest.directory / "layer"
        layers.clear(half_made)
        bounds = self._settings.limits
        limits = unpack.Limits(bytes=bounds.model_bytes, entries=bounds.archive_entries, free_bytes=bounds.free_bytes)
        try:
            layers.build(source, part.encoding, half_made, limits, self._cancel, uncompressed=part.uncompressed)
        except BadArtifact as e:
            ingest.discard()
            raise BadArtifact(f"archive {digest}: {e}") from e
        except OSError as e:
            raise ingests.disk_error(e, f"unpack {digest}") from e
        ingest.commit_unpacked(half_made, unpack.rules(part.encoding))

    def _read_document(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > MAX_DOCUMENT_BYTES:
            raise BadArtifact(
                f"the config {descriptor.digest} declares {descriptor.size} bytes; at most {MAX_DOCUMENT_BYTES} are "
                "read"
            )
        data = memoryview(bytearray(descriptor.size + 1))
        filled = 0
        with self._source.open(descriptor, 0) as opened:
            while filled < len(data) and (count := opened.readinto(data[filled:])):
                filled += count
        hasher = descriptor.digest.hasher()
        hasher.update(data[:filled])
        if filled != descriptor.size or hasher.hexdigest() != descriptor.digest.hex:
            raise IntegrityError(
                f"{self._source.name} served wrong bytes for the config {descriptor.digest}; have the registry's copy "
                "checked"
            )
        return bytes(data[:filled])
