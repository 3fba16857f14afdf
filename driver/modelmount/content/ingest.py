"""A download under way for one scope and one form: `ingest/<hex>-<scope>-<form>/` with `data` and `journal`.

Whoever holds the ingest's lock works on it; the lock outlives nothing, the bytes outlive everything. Writers, a thread
each, fill `data` anywhere; each piece of at most 1 MiB that is written gets a line in the journal. After whatever end,
only what the journal proves is believed and the rest is missing: nothing that a crash or a power cut tore is believed,
and nothing finished is fetched twice.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from isal import isal_zlib

from modelmount.content import journal as journals
from modelmount.content.diskerrors import disk_error as disk_error
from modelmount.content.diskerrors import translated
from modelmount.content.store import Store
from modelmount.errors import Cancelled, Internal, ModelMountError
from modelmount.oci.digest import Digest
from modelmount.system import atomic, disk
from modelmount.system.lock import Held

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 20
WRITEBACK_BYTES = 16 << 20
CHECKPOINT_BYTES = 32 << 20
"""Twice this is the most that a power cut may take: one that is being synced, and what comes meanwhile."""
CHECKPOINT_SECONDS = 2.0
GROUP_FILES = 16
"""Files of a layer from which on flushing the whole file system is faster than one fsync each (measured)."""

RAW = "raw"
UNPACKED = "unpacked"


def name(digest: Digest, scope: str, form: str) -> str:
    """The directory's name, which is also its lock's: `ingest-<name>`."""
    return f"{digest.hex}-{scope}-{form}"


def finished(store: Store, ingest: str) -> bool:
    """Whether what the ingest of this name was to bring is in the store, for its scope. False for names not ours."""
    hex_digits, _, rest = ingest.partition("-")
    scope, _, form = rest.partition("-")
    return form in {RAW, UNPACKED} and store.holds(hex_digits, scope, unpacked=form == UNPACKED)


class Ingest:
    """The open download. Any number of writers, each in one thread; any thread may `pread` what lies below `offset`.

    Lifecycle: `open` (lock held by the caller) → `writer`… → `commit_*`, or `close` to keep the bytes for later, or
    `discard` to drop them; the writers are closed before. Failures are ModelMountErrors. After a failed write the
    ingest keeps what its journal proves; after a failed sync its pages can't be trusted again, so `close` drops it.
    Descriptors stay open until then.
    """

    def __init__(self, store: Store, digest: Digest, size: int, scope: str, form: str, held: Held) -> None:
        """Use `open`. `held` is the ingest's lock, released by `close`, `commit_*` and `discard`."""
        self.store, self.digest, self.size, self.scope, self.form = store, digest, size, scope, form
        self.directory = store.root / "ingest" / name(digest, scope, form)
        self._held = held
        self._data = self._journal = -1
        self._lock = threading.Lock()
        self._missing = [(0, size)] if size else []
        self._checkpoint = threading.Lock()
        self._unsynced = 0
        self._checkpointed_at = time.monotonic()
        self._named = self._condemned = self._ended = False

    @classmethod
    def open(
        cls,
        store: Store,
        digest: Digest,
        size: int,
        scope: str,
        form: str,
        held: Held,
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Ingest:
        """Open or create the ingest and believe of its bytes what the journal proves, which takes a read of them.

        Takes over `held` even when it raises. Raises Cancelled, and then nothing of the ingest has changed.
        """
        ingest = cls(store, digest, size, scope, form, held)
        try:
            with translated(f"resume the download of {digest}"):
                ingest.directory.mkdir(mode=0o700, exist_ok=True)
                ingest._data = os.open(ingest.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                ingest._journal = os.open(ingest.directory / "journal", flags, 0o600)
                ingest._recover(cancelled)
        except BaseException:
            ingest.close()
            raise
        return ingest

    @property
    def path(self) -> Path:
        """The file that is being filled."""
        return self.directory / "data"

    @property
    def fd(self) -> int:
        """Descriptor of `data` for positional reads below `offset`."""
        return self._data

    @property
    def offset(self) -> int:
        """Everything below is written, without a gap: what may be read and hashed."""
        missing = self._missing
        return missing[0][0] if missing else self.size

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """The ranges that are not written, sorted and apart from each other."""
        with self._lock:
            return tuple(self._missing)

    def writer(self, offset: int) -> Writer:
        """A writer from `offset` on. Two writers must not write the same bytes at the same time."""
        return Writer(self, offset)

    def flush(self) -> None:
        """Make what is journalled survive a power cut. Writers may go on meanwhile; theirs is covered the next time."""
        with self._checkpoint:
            self._sync()

    def _sync(self) -> None:
        atomic.failpoint("content.ingest.checkpoint")
        with self._lock:
            unsynced, self._unsynced = self._unsynced, 0
        try:
            os.fdatasync(self._data)
            os.fdatasync(self._journal)
            if not self._named:
                atomic.fsync_directory(self.directory)
                atomic.fsync_directory(self.directory.parent)
        except OSError as e:
            self._condemned = True
            raise disk_error(e, f"make the download of {self.digest} durable") from e
        self._named = True
        log.debug("checkpoint of %s: %d bytes", self.digest, unsynced)
        self._checkpointed_at = time.monotonic()

    def commit_blob(self) -> None:
        """The bytes were verified: give them their name in `blobs/` and end the ingest.

        When the disk is full in the middle of it, `close` keeps the bytes, and another commit goes on from there.
        """
        if self.missing or os.fstat(self._data).st_size != self.size:
            raise Internal(f"refusing to commit {self.digest}: not all of its {self.size} bytes are written")
        try:
            os.fchmod(self._data, 0o444)
            os.fsync(self._data)
        except OSError as e:
            self._condemned = True
            raise disk_error(e, f"make {self.digest} durable") from e
        atomic.failpoint("content.ingest.before_commit")
        with translated(f"commit {self.digest}"):
            self.store.commit_blob(self.path, self.digest, self.scope)
        self.discard()

    def commit_unpacked(self, layer: Path, rules: int) -> None:
        """The archive was verified and unpacked into `layer` (below this ingest): commit that and drop the archive."""
        try:
            _sync_layer(layer)
        except OSError as e:
            self._condemned = True
            raise disk_error(e, f"make the unpacked {self.digest} durable") from e
        atomic.failpoint("content.ingest.before_commit_unpacked")
        with translated(f"commit the unpacked {self.digest}"):
            self.store.commit_unpacked(layer, self.digest, rules, self.scope)
        self.discard()

    def close(self) -> None:
        """Keep the bytes for a later attempt and let others work on them. Never raises; twice is harmless."""
        if self._condemned:
            self.discard()
        if self._ended:
            return
        self._close_files()
        self._held.release()

    def discard(self) -> None:
        """Drop the bytes and the ingest. Never raises; twice is harmless."""
        if self._ended:
            return  # without the lock the directory may be somebody else's by now
        self._close_files()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._held.release(unlink=True)

    # -- what writers and recovery share

    def _recover(self, cancelled: Callable[[], bool]) -> None:
        found = journals.proved(self._journal, self._data, self.size, cancelled)
        if found is None:
            raise Cancelled(f"the download of {self.digest} was stopped; its bytes are kept")
        missing, end = [], 0
        for first, last in [*found, (self.size, self.size)]:
            if end < first:
                missing.append((end, first))
            end = last
        self._missing = missing
        os.ftruncate(self._data, found[-1][1] if found else 0)

    def _write(self, view: memoryview, offset: int) -> None:
        with translated(f"write {self.digest}"):
            done = 0
            while done < len(view):
                done += os.pwrite(self._data, view[done:], offset + done)
        end = offset + len(view)
        with self._lock:
            around = [((first, min(last, offset)), (max(first, end), last)) for first, last in self._missing]
            self._missing = [part for pair in around for part in pair if part[0] < part[1]]
            self._unsynced += len(view)
            due = self._unsynced >= CHECKPOINT_BYTES or time.monotonic() - self._checkpointed_at >= CHECKPOINT_SECONDS
        if due and self._checkpoint.acquire(blocking=self._unsynced >= 2 * CHECKPOINT_BYTES):
            try:
                if self._unsynced >= CHECKPOINT_BYTES or time.monotonic() - self._checkpointed_at >= CHECKPOINT_SECONDS:
                    self._sync()
            finally:
                self._checkpoint.release()

    def _write_line(self, offset: int, length: int, crc: int) -> None:
        text = memoryview(journals.line(offset, length, crc))
        with translated(f"write the journal of {self.digest}"):
            while text:
                text = text[os.write(self._journal, text) :]

    def _start_writeback(self, offset: int, length: int) -> None:
        try:
            disk.sync_range(self._data, offset, length)
        except OSError as e:
            self._condemned = True
            raise disk_error(e, f"write {self.digest} to the disk") from e

    def _close_files(self) -> None:
        self._ended = True
        for fd in (self._data, self._journal):
            if fd >= 0:
                os.close(fd)
        self._data = self._journal = -1


class Writer:
    """One thread's way into an ingest; a context manager. Bytes go behind each other from `offset` on.

    A piece counts after a crash once it is full or the writer was closed.
    """

    def __init__(self, ingest: Ingest, offset: int) -> None:
        """Made by `Ingest.writer`."""
        self.offset = offset
        self._ingest = ingest
        self._crc = 0
        self._piece = self._written_back = offset

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, view: memoryview) -> None:
        """Write the next bytes. Raises NoSpace when the disk is full; what was journalled stays."""
        self._ingest._write(view, self.offset)
        position = 0
        while position < len(view):
            part = view[position : position + PIECE_BYTES - (self.offset - self._piece)]
            self._crc = isal_zlib.crc32(part, self._crc)
            self.offset += len(part)
            position += len(part)
            if self.offset - self._piece == PIECE_BYTES:
                self._finish_piece()
        if self.offset - self._written_back >= WRITEBACK_BYTES:
            self._ingest._start_writeback(self._written_back, self.offset - self._written_back)
            self._written_back = self.offset

    def close(self) -> None:
        """Journal the piece in hand, however short. Never raises; twice is harmless."""
        try:
            self._finish_piece()
        except ModelMountError as e:
            log.info("the last piece of %s will be fetched again: %s", self._ingest.digest, e)
            self._piece = self.offset

    def _finish_piece(self) -> None:
        if self.offset > self._piece:
            self._ingest._write_line(self._piece, self.offset - self._piece, self._crc)
        self._piece, self._crc = self.offset, 0


def _sync_layer(layer: Path) -> None:
    """With many files one flush of everything comes first: one fsync after the other would wait for the disk each time.
    The fsyncs are still made, for only they report what went wrong with their file.
    """
    if len(os.listdir(layer / "files")) > GROUP_FILES:
        with atomic.GroupSync(layer) as group:
            group.sync(())
    atomic.sync_tree(layer)
