"""A download under way for one scope and one form: `ingest/<hex>-<scope>-<form>/` with `data` and `journal`.

Whoever holds the ingest's lock works on it; the lock outlives nothing, the bytes outlive everything. The journal has
one line per finished piece of at most 1 MiB: offset, length, crc32 of the bytes as they were in memory, and a check of
the line itself. After whatever end, a line counts only when the bytes read back have its crc32; the rest is a hole. So
nothing that a crash or a power cut tore is believed, and nothing finished is fetched twice.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

from modelmount.content.store import Store
from modelmount.errors import Internal, NoSpace
from modelmount.oci.digest import Digest
from modelmount.system import atomic, disk
from modelmount.system.lock import Held

PIECE_BYTES = 1 << 20
WRITEBACK_BYTES = 16 << 20
CHECKPOINT_BYTES = 64 << 20
CHECKPOINT_SECONDS = 2.0
READ_BYTES = 1 << 20

RAW = "raw"
UNPACKED = "unpacked"


def name(digest: Digest, scope: str, form: str) -> str:
    """The directory's name, which is also its lock's: `ingest-<name>`."""
    return f"{digest.hex}-{scope}-{form}"


@dataclass(slots=True)
class _Piece:
    """Bytes appended since the last journal line."""

    offset: int
    length: int = 0
    crc: int = 0


class Ingest:
    """The open download. One thread appends; any thread may `pread` what lies below `offset`.

    Lifecycle: `open` (lock held by the caller) → `append`… → `commit_*`, or `close` to keep the bytes for later, or
    `discard` to drop them. A failed write or sync raises and leaves what the journal proves; a failed fsync discards
    everything, for its pages can't be trusted again.
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
        """Open or create the ingest and believe of its bytes what the journal proves. Takes over `held` even when it
        raises.
        """
        ingest = cls(store, digest, size, scope, form, held)
        try:
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
        try:
            done = 0
            while done < len(view):
                done += os.pwrite(self._data, view[done:], self.offset + done)
        except OSError as e:
            raise disk_error(e, f"write {self.digest}") from e
        position = 0
        while position < len(view):
            part = view[position : position + PIECE_BYTES - self._piece.length]
            self._piece.crc = isal_zlib.crc32(part, self._piece.crc)
            self._piece.length += len(part)
            position += len(part)
            if self._piece.length == PIECE_BYTES:
                self._finish_piece()
        self.offset += len(view)
        self._keep_disk_busy()

    def flush(self) -> None:
        """Journal the piece in hand, however short, and make everything so far survive a power cut."""
        self._finish_piece()
        self._checkpoint()

    def commit_blob(self) -> None:
        """The bytes were verified: give them their name in `blobs/` and end the ingest."""
        try:
            os.fsync(self._data)
            os.fchmod(self._data, 0o444)
        except OSError as e:
            self.discard()
            raise disk_error(e, f"make {self.digest} durable") from e
        atomic.failpoint("content.ingest.before_commit")
        self.store.commit_blob(self.path, self.digest, self.scope)
        self.discard()

    def commit_unpacked(self, layer: Path, rules: int) -> None:
        """The archive was verified and unpacked into `layer` (below this ingest): commit that and drop the archive."""
        try:
            atomic.sync_tree(layer)
        except OSError as e:
            self.discard()
            raise disk_error(e, f"make the unpacked {self.digest} durable") from e
        atomic.failpoint("content.ingest.before_commit_unpacked")
        self.store.commit_unpacked(layer, self.digest, rules, self.scope)
        self.discard()

    def close(self) -> None:
        """Keep the bytes for a later attempt and let others work on them. Safe to call twice."""
        if self._data >= 0 and self._journal >= 0 and self._piece.length:
            self._finish_piece()
        self._close_files()
        self._held.release()

    def discard(self) -> None:
        """Drop the bytes and the ingest."""
        self._close_files()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._held.release(unlink=True)

    # -- journal

    def _recover(self, cancelled: Callable[[], bool]) -> None:
        lines = _journal_lines(_read_all(self._journal))
        for offset, length, crc in lines:
            if offset != self.offset or offset + length > self.size or cancelled():
                continue
            if _crc_of(self._data, offset, length) != crc:
                break
            self.offset += length
        os.ftruncate(self._data, self.offset)
        self._piece = _Piece(self.offset)
        self._written_back = self._durable = self.offset
        kept = b"".join(_line(*line) for line in lines if line[0] + line[1] <= self.offset)
        if os.fstat(self._journal).st_size != len(kept):
            os.ftruncate(self._journal, 0)
            os.write(self._journal, kept)

    def _finish_piece(self) -> None:
        piece = self._piece
        if piece.length:
            try:
                os.write(self._journal, _line(piece.offset, piece.length, piece.crc))
            except OSError as e:
                raise disk_error(e, "write the journal") from e
        self._piece = _Piece(piece.offset + piece.length)

    def _keep_disk_busy(self) -> None:
        if self.offset - self._written_back >= WRITEBACK_BYTES:
            disk.sync_range(self._data, self._written_back, self.offset - self._written_back)
            self._written_back = self.offset
            now = time.monotonic()
            if self.offset - self._durable >= CHECKPOINT_BYTES or now - self._checkpointed_at >= CHECKPOINT_SECONDS:
                self._checkpoint()

    def _checkpoint(self) -> None:
        atomic.failpoint("content.ingest.checkpoint")
        try:
            os.fdatasync(self._data)
            os.fdatasync(self._journal)
        except OSError as e:
            self.discard()
            raise disk_error(e, f"make the download of {self.digest} durable") from e
        self._durable = self.offset
        self._checkpointed_at = time.monotonic()

    def _close_files(self) -> None:
        for fd in (self._data, self._journal):
            if fd >= 0:
                os.close(fd)
        self._data = self._journal = -1


def disk_error(error: OSError, action: str) -> NoSpace | Internal:
    """An OSError of the store's file system as ours: full disks pass, the rest needs an admin."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space left to {action}; what was verified is kept, free space on the store's file system")
    return Internal(f"cannot {action}: {error.strerror}; look at the node's disk and file system")


def _line(offset: int, length: int, crc: int) -> bytes:
    body = b"%d %d %08x" % (offset, length, crc)
    return b"%s %08x\n" % (body, isal_zlib.crc32(body))


def _journal_lines(data: bytes) -> list[tuple[int, int, int]]:
    """The lines whose own check holds, by offset; a torn line is no line."""
    lines = []
    for raw in data.split(b"\n"):
        body, _, check = raw.rpartition(b" ")
        if not body or check != b"%08x" % isal_zlib.crc32(body):
            continue
        offset, length, crc = body.split(b" ")
        lines.append((int(offset), int(length), int(crc, 16)))
    return sorted(lines)


def _read_all(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _crc_of(fd: int, offset: int, length: int) -> int:
    buffer = memoryview(bytearray(min(length, READ_BYTES)))
    crc, end = 0, offset + length
    while offset < end:
        count = os.preadv(fd, [buffer[: end - offset]], offset)
        if not count:
            return -1
        crc = isal_zlib.crc32(buffer[:count], crc)
        offset += count
    return crc
