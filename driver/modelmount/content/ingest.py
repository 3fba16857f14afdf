"""A download under way for one scope and one form: `ingest/<hex>-<scope>-<form>/` with `data` and `journal`.

Whoever holds the ingest's lock works on it; the lock outlives nothing, the bytes outlive everything. The journal has
one line per finished piece of at most 1 MiB: offset, length, crc32 of the bytes as they were in memory, and a check of
the line itself. After whatever end, a line counts only when the bytes read back have its crc32; the rest is a hole. So
nothing that a crash or a power cut tore is believed, and nothing finished is fetched twice.

The journal is only ever appended to: a line about bytes that didn't survive is answered by a later line for the same
offset, and no moment exists in which the journal is gone. Newlines stand on both sides of a line, so that it survives a
torn one before it (full disk) and zeros behind it (power cut).
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

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
CHECKPOINT_BYTES = 64 << 20
CHECKPOINT_SECONDS = 2.0
READ_BYTES = 1 << 20
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


@dataclass(slots=True)
class _Piece:
    """Bytes appended since the last journal line."""

    offset: int
    length: int = 0
    crc: int = 0


class Ingest:
    """The open download. One thread appends; any thread may `pread` what lies below `offset`.

    Lifecycle: `open` (lock held by the caller) → `append`… → `commit_*`, or `close` to keep the bytes for later, or
    `discard` to drop them. Failures are ModelMountErrors. After a failed write the ingest keeps what its journal
    proves; after a failed sync its pages can't be trusted again, so `close` drops it. Descriptors stay open until then.
    """

    def __init__(self, store: Store, digest: Digest, size: int, scope: str, form: str, held: Held) -> None:
        """Use `open`. `held` is the ingest's lock, released by `close`, `commit_*` and `discard`."""
        self.store, self.digest, self.size, self.scope, self.form = store, digest, size, scope, form
        self.directory = store.root / "ingest" / name(digest, scope, form)
        self.offset = 0
        self._held = held
        self._data = self._journal = -1
        self._piece = _Piece(0)
        self._written_back = self._durable = 0
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

    def append(self, view: memoryview) -> None:
        """Write the next bytes. Raises NoSpace when the disk is full; what was journalled stays."""
        with translated(f"write {self.digest}"):
            done = 0
            while done < len(view):
                done += os.pwrite(self._data, view[done:], self.offset + done)
        self.offset += len(view)
        position = 0
        while position < len(view):
            part = view[position : position + PIECE_BYTES - self._piece.length]
            self._piece.crc = isal_zlib.crc32(part, self._piece.crc)
            self._piece.length += len(part)
            position += len(part)
            if self._piece.length == PIECE_BYTES:
                self._finish_piece()
        self._keep_disk_busy()

    def flush(self) -> None:
        """Journal the piece in hand, however short, and make everything so far survive a power cut."""
        self._finish_piece()
        atomic.failpoint("content.ingest.checkpoint")
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
        self._durable = self.offset
        self._checkpointed_at = time.monotonic()

    def commit_blob(self) -> None:
        """The bytes were verified: give them their name in `blobs/` and end the ingest.

        When the disk is full in the middle of it, `close` keeps the bytes, and another commit goes on from there.
        """
        if self.offset != self.size or os.fstat(self._data).st_size != self.size:
            raise Internal(f"refusing to commit {self.offset} of the {self.size} bytes of {self.digest}")
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
        if self._journal >= 0:
            try:
                self._finish_piece()
            except ModelMountError as e:
                log.info("the last piece of %s will be fetched again: %s", self.digest, e)
        self._close_files()
        self._held.release()

    def discard(self) -> None:
        """Drop the bytes and the ingest. Never raises; twice is harmless."""
        if self._ended:
            return  # without the lock the directory may be somebody else's by now
        self._close_files()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._held.release(unlink=True)

    # -- journal
    # ------------------------------------------------------------------------------------------------------------------

    def _recover(self, cancelled: Callable[[], bool]) -> None:
        proofs: dict[int, list[tuple[int, int]]] = {}
        for offset, length, crc in _journal_lines(_read_all(self._journal)):
            proofs.setdefault(offset, []).append((length, crc))
        end = 0
        while length := self._proved_at(end, proofs.get(end, ()), cancelled):
            end += length
        os.ftruncate(self._data, end)
        self.offset = self._written_back = self._durable = end
        self._piece = _Piece(end)

    def _proved_at(self, offset: int, proofs: Sequence[tuple[int, int]], cancelled: Callable[[], bool]) -> int:
        """How many bytes at `offset` are what one of the lines says, the newest first; 0 when none is right."""
        for length, crc in reversed(proofs):
            if cancelled():
                raise Cancelled(f"the download of {self.digest} was stopped; its bytes are kept")
            if offset + length <= self.size and _crc_of(self._data, offset, length) == crc:
                return length
        return 0

    def _finish_piece(self) -> None:
        piece = self._piece
        if not piece.length:
            return
        line = memoryview(_line(piece.offset, piece.length, piece.crc))
        with translated(f"write the journal of {self.digest}"):
            while line:
                line = line[os.write(self._journal, line) :]
        self._piece = _Piece(piece.offset + piece.length)

    def _keep_disk_busy(self) -> None:
        waiting = self.offset - self._written_back
        if waiting >= WRITEBACK_BYTES:
            try:
                disk.sync_range(self._data, self._written_back, waiting)
            except OSError as e:
                self._condemned = True
                raise disk_error(e, f"write {self.digest} to the disk") from e
            self._written_back = self.offset
        late = time.monotonic() - self._checkpointed_at >= CHECKPOINT_SECONDS
        if late or self.offset - self._durable >= CHECKPOINT_BYTES:
            self.flush()

    def _close_files(self) -> None:
        self._ended = True
        for fd in (self._data, self._journal):
            if fd >= 0:
                os.close(fd)
        self._data = self._journal = -1


def _sync_layer(layer: Path) -> None:
    """With many files one flush of everything comes first: one fsync after the other would wait for the disk each time.
    The fsyncs are still made, for only they report what went wrong with their file.
    """
    if len(os.listdir(layer / "files")) > GROUP_FILES:
        with atomic.GroupSync(layer) as group:
            group.sync(())
    atomic.sync_tree(layer)


def _line(offset: int, length: int, crc: int) -> bytes:
    body = b"%d %d %08x" % (offset, length, crc)
    return b"\n%s %08x\n" % (body, isal_zlib.crc32(body))


def _journal_lines(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The lines whose own check holds, oldest first; a torn line is no line."""
    for raw in data.split(b"\n"):
        body, _, check = raw.rpartition(b" ")
        fields = body.split(b" ")
        if len(fields) == 3 and check == b"%08x" % isal_zlib.crc32(body):
            yield int(fields[0]), int(fields[1]), int(fields[2], 16)


def _read_all(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _crc_of(fd: int, offset: int, length: int) -> int:
    """crc32 of the bytes; -1 when there are fewer."""
    buffer = memoryview(bytearray(min(length, READ_BYTES)))
    crc, end = 0, offset + length
    while offset < end:
        count = os.preadv(fd, [buffer[: end - offset]], offset)
        if not count:
            return -1
        crc = isal_zlib.crc32(buffer[:count], crc)
        offset += count
    return crc
