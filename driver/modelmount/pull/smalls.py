"""Small blobs by the handful: fetched into memory, verified there, committed together.

One by one, a file of a kilobyte costs an ingest, a journal and five syncs; models with thousands of such files would
take minutes. Nothing of a group is lost to resume: it is fetched again, and a group is small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from modelmount import telemetry
from modelmount.config import Limits
from modelmount.content import ingest as ingests
from modelmount.content.backoff import Backoff
from modelmount.content.store import NewLayer, Store
from modelmount.errors import IntegrityError, Unavailable
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.pull import fetch
from modelmount.pull.fetch import Cancel
from modelmount.pull.plan import Part
from modelmount.pull.progress import Counters, Progress
from modelmount.pull.unpacking import bounds, named
from modelmount.snapshots import headers, scatter, unpack
from modelmount.sources.base import BlobSource
from modelmount.system import disk
from modelmount.system.lock import LockCancelled
from modelmount.transport.retry import Policy

SMALL_FILE_BYTES = 256 << 10
"""Raw blobs and uncompressed archives up to this size are fetched in groups."""
GROUP_BYTES = 1 << 20
"""What one connection may lose to a crash."""
GROUP_FILES = 256
SHARE_FILES = 4
"""Towards the end a group still has so many, though other threads then have nothing to do: each group waits for the
disk to sync, and a file alone for four syncs.
"""


def fits(part: Part) -> bool:
    """Whether the part is fetched this way."""
    return (part.form == ingests.RAW or part.is_scattered) and part.descriptor.size <= SMALL_FILE_BYTES


def share(waiting: int, threads: int) -> int:
    """How many of the parts that nobody began yet one of so many threads takes at most."""
    return min(GROUP_FILES, max(SHARE_FILES, waiting // max(1, threads)))


def wait(store: Store, scope: str, part: Part, cancel: Cancel) -> None:
    """Return when nobody is at this small part. Raises Cancelled."""
    try:
        with store.small_locks() as locks:
            locks.wait(_name(part, scope), cancel)
    except LockCancelled as e:
        raise fetch.stopped(part.descriptor.digest) from e


def _name(part: Part, scope: str) -> str:
    return ingests.name(part.descriptor.digest, scope, part.form)


class Group:
    """Some small parts of one model, fetched by one thread over one connection after the other."""

    def __init__(
        self,
        store: Store,
        scope: str,
        source: BlobSource,
        progress: Progress,
        cancel: Cancel,
        limits: Limits,
        complained: Callable[[float | None], None] = lambda wait: None,
    ) -> None:
        """`complained` is called as by `fetch.Download`."""
        self._store, self._scope, self._source = store, scope, source
        self._progress, self._cancel, self._bounds = progress, cancel, bounds(limits)
        self._complained = complained
        self._policy = Policy()
        self._buffer = memoryview(b"")
        self.fetched: list[Part] = []
        """What it brought; committed once `fetch` has returned."""

    def fetch(self, parts: Sequence[Part]) -> list[Part]:
        """Fetch and commit `parts`; those that somebody else is at come back. Raises as `fetch.Download` does; what was
        fetched before is committed all the same.
        """
        busy: list[Part] = []
        blobs: dict[Digest, bytes] = {}
        layers: list[NewLayer] = []
        with self._store.small_locks() as locks:
            try:
                for part in parts:
                    if not locks.take(_name(part, self._scope)):
                        busy.append(part)
                        continue
                    if part.present(self._store, self._scope):
                        self._progress.file(part.key).found()
                        telemetry.blobs_total.labels("shared").inc()
                    elif part.is_scattered:
                        layers.append(self._layer(part))
                        self.fetched.append(part)
                    else:
                        blobs[part.descriptor.digest] = self._fetched(part)
                        self.fetched.append(part)
            finally:
                began = time.monotonic()
                self._store.put_group(blobs, self._scope, layers)
                self._progress.worked(time.monotonic() - began)
            for part in self.fetched:
                self._progress.file(part.key).ready()
        return busy

    def _layer(self, part: Part) -> NewLayer:
        digest, limits, rootfs = part.descriptor.digest, self._bounds, part.encoding.is_rootfs
        if self._store.has_blob(digest, self._scope):
            self._progress.file(part.key).have(part.descriptor.size)
            data = self._store.read_document(digest)
        else:
            data = self._fetched(part)
        with named(part):
            members = headers.read_small(data, limits, self._cancel, rootfs=rootfs)
        rules = unpack.rules(part.encoding)
        return NewLayer(digest, rules, lambda layer: scatter.build(data, layer, members, limits))

    def _fetched(self, part: Part) -> bytes:
        data = self.read(part.descriptor, self._progress.file(part.key))
        telemetry.blobs_total.labels("fetched").inc()
        return data

    def read(self, descriptor: Descriptor, counters: Counters) -> bytes:
        """One verified blob, however small or large. Raises as `fetch` does."""
        backoff = Backoff(self._store, descriptor.digest, self._scope, self._source.name)
        backoff.check()
        try:
            while True:
                data = self._received(descriptor, counters) if descriptor.size else b""
                hasher = descriptor.digest.hasher()
                hasher.update(data)
                if hasher.hexdigest() == descriptor.digest.hex:
                    break
                wrong = fetch.wrong_bytes(self._source, descriptor, hasher.hexdigest())
                if not self._source.blame(descriptor, wrong.message):
                    raise wrong
                counters.have(-len(data))
        except IntegrityError as e:
            backoff.punish(e.message)
            telemetry.blobs_total.labels("refused").inc()
            raise
        backoff.forgive()
        return data

    def _received(self, descriptor: Descriptor, counters: Counters) -> bytes:
        failures = 0
        if len(self._buffer) <= descriptor.size:
            self._buffer = disk.buffer(max(descriptor.size, SMALL_FILE_BYTES) + 1)
        view = self._buffer[: descriptor.size + 1]
        while True:
            before = time.thread_time()
            try:
                filled = self._receive(descriptor, view)
            except Unavailable as e:
                failures += 1
                counters.failed(e.message)
                wait = self._policy.delay(failures, e.retry_after)
                if e.retry_after is not None:
                    self._complained(wait)
                if failures >= fetch.ATTEMPTS:
                    raise
                self._cancel.sleep(wait)
                if self._cancel():
                    raise fetch.stopped(descriptor.digest) from e
                continue
            worked = time.thread_time() - before
            counters.fetched(filled, worked, worked)
            telemetry.fetched_bytes_total.inc(filled)
            return bytes(view[:filled])

    def _receive(self, descriptor: Descriptor, view: memoryview) -> int:
        filled = 0
        with self._source.open(descriptor, 0) as opened:
            while filled < len(view) and (count := opened.readinto(view[filled:])):
                filled += count
                if self._cancel():
                    raise fetch.stopped(descriptor.digest)
        if filled > descriptor.size:
            raise fetch.too_many_bytes(self._source, descriptor)
        if filled < descriptor.size:
            raise Unavailable(
                f"{self._source.name} ended {descriptor.digest} after {filled} of {descriptor.size} bytes"
            )
        return filled
