"""A download under way for one scope and one form: `ingest/<hex>-<scope>-<form>/` with a `journal` and the blob's
bytes, as one file `data` or where another `Body` puts them.

Whoever holds the ingest's lock works on it; the lock outlives nothing, the bytes outlive everything. Writers, a thread
each, fill the blob anywhere; each piece of at most 512 KiB that is written gets a line in the journal. After whatever
end, only what the journal proves is believed and the rest is missing: nothing that a crash or a power cut tore is
believed, and nothing finished is fetched twice.

What was written once stays as it is for as long as the ingest is open: it may have been hashed already, and nobody
would hash it again.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from modelmount.content import journal as journals
from modelmount.content import ranges
from modelmount.content.body import Body, FileBody
from modelmount.content.checkpoints import Checkpoints
from modelmount.content.diskerrors import disk_error as disk_error
from modelmount.content.diskerrors import translated
from modelmount.content.ranges import Range
from modelmount.content.store import Store
from modelmount.content.writer import Writer
from modelmount.errors import Cancelled, IntegrityError, Internal, NoSpace
from modelmount.oci.digest import Digest
from modelmount.system import atomic
from modelmount.system.lock import Held

log = logging.getLogger(__name__)

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
    """The open download. Any number of writers, each in one thread; any thread may read what lies below `offset`, and
    call anything else.

    Lifecycle: `open` (lock held by the caller) → `writer`… → `commit_*`, or `close` to keep the bytes for later, or
    `discard` to drop them. The end closes the writers that are open; a write after it raises. Failures are
    ModelMountErrors. After a failed write the ingest keeps what its journal proves. After a failed sync its pages can't
    be trusted again: the journal goes at once, writes and commits raise, and `close` drops the rest. Descriptors stay
    open until then.
    """

    # Locks, in the order in which they are taken: that of `checkpoints` (one sync or the end), a writer's, `_lock` (the
    # fields below it, never held over I/O). Whoever waits for the first holds none.

    def __init__(self, store: Store, digest: Digest, size: int, scope: str, form: str, held: Held) -> None:
        """Use `open`. `held` is the ingest's lock, released by `close`, `commit_*` and `discard`."""
        self.store, self.digest, self.size, self.scope, self.form = store, digest, size, scope, form
        self.directory = store.root / "ingest" / name(digest, scope, form)
        self._held = held
        self._body: Body | None = None
        self._group: atomic.GroupSync | None = None
        self._journal = -1
        self._resumed = False
        self.checkpoints = Checkpoints(self._sync, lambda: self._condemned is not None)
        self._named = False
        self._condemned: NoSpace | Internal | IntegrityError | None = None
        self._lock = threading.Lock()
        self._ended = False
        self._missing: list[Range] = [(0, size)] if size else []
        self._writing: list[Range] = []
        self._journalled = 0  # of the pending bytes
        self._writers: set[Writer] = set()

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
        body: Callable[[Path], Body] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Ingest:
        """Open or create the ingest and believe of its bytes what the journal proves, which takes a read of them.

        `body` opens what holds the bytes, in the ingest's directory; one file does where it isn't given. Takes over
        `held` even when it raises. Raises Cancelled, and then nothing of the ingest has changed; IntegrityError where
        the body can't go on with what is there, which is gone then.
        """
        ingest = cls(store, digest, size, scope, form, held)
        try:
            with translated(f"resume the download of {digest}"):
                ingest.directory.mkdir(mode=0o700, exist_ok=True)
                if form == UNPACKED:
                    ingest._group = atomic.GroupSync(ingest.directory)
                ingest._body = body(ingest.directory) if body is not None else FileBody.open(ingest.path, size)
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                ingest._journal = os.open(ingest.directory / "journal", flags, 0o600)
                ingest._recover(cancelled)
            to_come = sum(last - first for first, last in ingest._missing)
            ingest.checkpoints.begin(to_come, f"sync-{digest.hex[:12]}")
        except IntegrityError:
            ingest.discard()
            raise
        except BaseException:
            ingest.close()
            raise
        return ingest

    @property
    def path(self) -> Path:
        """The file that is being filled, where it is one."""
        return self.directory / "data"

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill the head of `view` with bytes from `offset` on; how many, 0 where there are none. Raises OSError."""
        return self._open_body().read_into(view, offset)

    @property
    def front(self) -> int:
        """Writers may begin here and before, not farther behind."""
        body = self._body
        return body.front if body is not None else self.size

    @property
    def offset(self) -> int:
        """Everything below is written, without a gap: what may be read and hashed."""
        missing = self._missing
        return missing[0][0] if missing else self.size

    @property
    def missing(self) -> tuple[Range, ...]:
        """The ranges that are not written, sorted and apart from each other."""
        return tuple(self._missing)

    def writer(self, offset: int) -> Writer:
        """A writer from `offset` on. Two writers must not write the same bytes at the same time, which raises Internal;
        of bytes that were written before, the first stay.
        """
        writer = Writer(self, offset)
        with self._lock:
            self._check_usable()
            self._writers.add(writer)
        return writer

    def flush(self) -> None:
        """Make everything written so far survive a power cut, the pieces in the writers' hands too. They may go on
        meanwhile; what they write then is covered the next time.
        """
        with self.checkpoints.lock:
            self._check_usable()
            for writer in self._current_writers():
                writer.journal()
            self.checkpoints.make()

    def commit_blob(self) -> None:
        """The bytes were verified: give them their name in `blobs/` and end the ingest.

        When the disk is full in the middle of it, `close` keeps the bytes, and another commit goes on from there.
        """
        with self.checkpoints.lock:  # of two syncs at once only one is told of an error
            self._check_usable()
            left = sum(last - first for first, last in self.missing)
            body = self._open_body()
            if left or not isinstance(body, FileBody) or body.length != self.size:
                raise Internal(f"refusing to commit {self.size - left} of the {self.size} bytes of {self.digest}")
            try:
                body.seal()
            except OSError as e:
                raise self._condemn(e, f"make {self.digest} durable") from e
        atomic.failpoint("content.ingest.before_commit")
        with translated(f"commit {self.digest}"):
            self.store.commit_blob(self.path, self.digest, self.scope)
        self.discard()

    def commit_unpacked(self, layer: Path, rules: int) -> None:
        """The archive was verified and unpacked into `layer` (below this ingest): commit that and drop the archive."""
        with self.checkpoints.lock:
            self._check_usable()
            try:
                self._sync_layer(layer)
            except OSError as e:
                raise self._condemn(e, f"make the unpacked {self.digest} durable") from e
        atomic.failpoint("content.ingest.before_commit_unpacked")
        with translated(f"commit the unpacked {self.digest}"):
            self.store.commit_unpacked(layer, self.digest, rules, self.scope)
        self.discard()

    def close(self) -> None:
        """Keep the bytes for a later attempt and let others work on them. Never raises; twice is harmless."""
        if self._end():
            self._let_go(keep=self._condemned is None)

    def discard(self) -> None:
        """Drop the bytes and the ingest. Never raises; twice is harmless."""
        if self._end():
            self._let_go(keep=False)

    def _end(self) -> bool:
        """Stop everybody and close the files; False when that was done before. Without the lock, which goes next, the
        directory may be somebody else's, and the descriptors' numbers are anybody's.
        """
        with self.checkpoints.lock:
            with self._lock:
                if self._ended:
                    return False
                self._ended = True
            for writer in self._current_writers():
                writer.close()
            self._close_files()
            self.checkpoints.end()
        self.checkpoints.join()
        return True

    def _let_go(self, *, keep: bool) -> None:
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)
        try:
            self._held.release(unlink=not keep)
        except OSError as e:  # a disk that failed is often read-only from then on; the lock is free all the same
            log.warning("cannot remove the lock of the download of %s: %s", self.digest, e.strerror)

    def _close_files(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()
        if self._journal >= 0:
            os.close(self._journal)
        self._journal = -1
        if self._group is not None:
            self._group.close()

    def _recover(self, cancelled: Callable[[], bool]) -> None:
        body = self._open_body()
        found = journals.proved(self._journal, body.read_into, self.size, cancelled)
        if found is None:
            raise Cancelled(f"the download of {self.digest} was stopped; its bytes are kept")
        self._missing = ranges.between(found, self.size)
        self._resumed = bool(found)
        body.resume(found)

    def _open_body(self) -> Body:
        body = self._body
        if body is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return body

    def _check_usable(self) -> None:
        condemned = self._condemned
        if condemned is not None:
            raise type(condemned)(condemned.message) from condemned
        if self._ended:
            raise Internal(f"the download of {self.digest} has ended; nothing of it can be written any more")

    def _condemn(self, error: OSError, action: str) -> NoSpace | Internal:
        """After a failed sync the kernel calls lost pages clean: also who finds them after our death, and could sync
        them without an error, must not believe them.
        """
        condemned = self._condemned = disk_error(error, action)
        try:
            (self.directory / "journal").unlink(missing_ok=True)
        except OSError as e:
            log.warning("cannot remove the journal of %s: %s", self.digest, e.strerror)
        return condemned

    def _sync_layer(self, layer: Path) -> None:
        """With many files one sync of the file system covers all of them: one fsync after the other would wait for the
        disk each time. What an earlier attempt wrote is told to nobody but whoever asks that file.
        """
        files = [Path(directory, name) for directory, _, names in os.walk(layer) for name in names]
        many = self._group is not None and len(files) > GROUP_FILES
        if self._group is not None and many:
            self._group.sync(files)
        atomic.sync_tree(layer, files=not many or self._resumed)

    def _current_writers(self) -> tuple[Writer, ...]:
        with self._lock:
            return tuple(self._writers)

    def _sync(self) -> None:
        """Make a checkpoint. The caller has the lock of `checkpoints`."""
        self._check_usable()
        for writer in self._current_writers():
            writer.journal(wait=False)
        with self._lock:
            covered = self._journalled  # what is journalled from now on may be covered, but counts for the next one
        try:
            atomic.failpoint("content.ingest.checkpoint")
            self._open_body().sync(self._group)
            os.fdatasync(self._journal)
            if not self._named:
                atomic.fsync_directory(self.directory)
                atomic.fsync_directory(self.directory.parent)
        except OSError as e:
            raise self._condemn(e, f"make the download of {self.digest} durable") from e
        self._named = True
        with self._lock:
            self._journalled -= covered
            self.checkpoints.pending -= covered
        log.debug("checkpoint of %s: %d bytes", self.digest, covered)

    # -- what writers do

    def claim(self, first: int, last: int) -> None:
        """Before a write of these bytes, which nobody else writes until `release`. Waits for a checkpoint while there
        is more than a power cut may take.
        """
        with self._lock:
            self._check_usable()
            if last > self.size:
                raise Internal(f"refusing to write byte {last} of {self.digest}, which has {self.size}")
            if any(a < last and first < b for a, b in self._writing):
                raise Internal(f"two writers write byte {first} of {self.digest} at the same time")
            self._writing.append((first, last))
            self.checkpoints.pending += last - first
        try:
            self.checkpoints.wait_if_overdue()
        except BaseException:
            self.release(first, last, written=False)
            raise

    def release(self, first: int, last: int, *, written: bool) -> None:
        """After it, however it ended."""
        with self._lock:
            self._writing.remove((first, last))
            if not written:
                self.checkpoints.pending -= last - first

    def write(self, view: memoryview, offset: int) -> None:
        """Write what is missing of claimed bytes."""
        end = offset + len(view)
        try:
            for first, last in ranges.within(self._missing, offset, end):
                self._open_body().write(view[first - offset : last - offset], first)
        except OSError as e:
            raise disk_error(e, f"write {self.digest}") from e
        except IntegrityError as e:  # with what is here these bytes can't be right, so nobody goes on with it
            self._condemned = e
            raise
        with self._lock:
            self._missing = ranges.without(self._missing, offset, end)

    def write_line(self, offset: int, length: int, crc: int) -> None:
        """Into the journal: a piece that was written."""
        with translated(f"write the journal of {self.digest}"):
            journals.append(self._journal, offset, length, crc)
        with self._lock:
            self._journalled += length

    def start_writeback(self, offset: int, length: int) -> None:
        """Have the disk begin with these bytes."""
        try:
            self._open_body().start_writeback(offset, length)
        except OSError as e:
            raise self._condemn(e, f"write {self.digest} to the disk") from e

    def leave(self, writer: Writer, lost: int) -> None:
        """The writer was closed, and couldn't journal so many bytes that it wrote last."""
        with self._lock:
            self._writers.discard(writer)
            self.checkpoints.pending -= lost
