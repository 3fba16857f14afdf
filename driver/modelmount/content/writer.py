"""One thread's way into a download: the bytes that it writes, piece by piece, each with its line in the journal."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Protocol, Self

from isal import isal_zlib

from modelmount.content.checkpoints import Checkpoints
from modelmount.errors import Internal, ModelMountError
from modelmount.oci.digest import Digest

log = logging.getLogger(__name__)

PIECE_BYTES = 512 << 10
WRITEBACK_BYTES = 16 << 20


class Filled(Protocol):
    """What is filled, as its writers see it: `content.ingest.Ingest`. Every method may be called from any thread, and
    raises ModelMountErrors.
    """

    checkpoints: Checkpoints

    @property
    def digest(self) -> Digest:
        """Of what."""

    def claim(self, first: int, last: int) -> None:
        """Before a write of these bytes, which nobody else writes until `release`. Waits for a checkpoint while there
        is more than a power cut may take.
        """

    def release(self, first: int, last: int, *, written: bool) -> None:
        """After it, however it ended."""

    def write(self, view: memoryview, offset: int) -> None:
        """Write what is missing of claimed bytes."""

    def write_line(self, offset: int, length: int, crc: int) -> None:
        """Into the journal: a piece that was written."""

    def start_writeback(self, offset: int, length: int) -> None:
        """Have the disk begin with these bytes."""

    def leave(self, writer: Writer, lost: int) -> None:
        """The writer was closed, and couldn't journal so many bytes that it wrote last."""


class Writer:
    """One thread's way into an ingest; a context manager. Bytes go behind each other from `offset` on.

    A piece counts after a crash once it is full, a checkpoint came between two writes or the writer was closed, and
    after a power cut with the checkpoint.
    """

    def __init__(self, ingest: Filled, offset: int) -> None:
        """Made by `Ingest.writer`."""
        self.offset = offset
        self._ingest = ingest
        self._lock = threading.Lock()
        self._crc = 0
        self._piece = self._written_back = offset
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, view: memoryview) -> None:
        """Write the next bytes; on return, readers of the ingest may have them. Now and then this makes a checkpoint.

        Raises NoSpace when the disk is full, Internal for what should not happen: bytes beyond the blob's end, a closed
        writer. `offset` says how far it came; what was journalled stays, and going on from `offset` is allowed.
        """
        while view:
            part, view = view[:PIECE_BYTES], view[PIECE_BYTES:]
            first, last = self.offset, self.offset + len(part)
            self._ingest.claim(first, last)
            try:
                with self._lock:
                    self._append(part)
            finally:
                self._ingest.release(first, last, written=self.offset == last)
            self._ingest.checkpoints.make_if_due()

    def journal(self, *, wait: bool = True) -> None:
        """Finish the piece in hand, however short; without `wait`, only if the writer isn't at a write now. Any thread
        may. Raises NoSpace, Internal, and then keeps it.
        """
        if self._lock.acquire(blocking=wait):
            try:
                self._finish_piece()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Journal the piece in hand. Any thread may. Never raises; twice is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._finish_piece()
            except ModelMountError as e:
                log.info("the last piece of %s will be fetched again: %s", self._ingest.digest, e)
            lost, self._piece = self.offset - self._piece, self.offset
        self._ingest.leave(self, lost)

    def _append(self, part: memoryview) -> None:
        if self._closed:
            raise Internal(f"refusing to write {self._ingest.digest} through a writer that was closed")
        if self.offset - self._piece + len(part) > PIECE_BYTES:
            self._finish_piece()
        self._ingest.write(part, self.offset)
        self._crc = isal_zlib.crc32(part, self._crc)
        self.offset += len(part)
        if self.offset - self._piece == PIECE_BYTES:
            self._finish_piece()
        if self.offset - self._written_back >= WRITEBACK_BYTES:
            self._ingest.start_writeback(self._written_back, self.offset - self._written_back)
            self._written_back = self.offset

    def _finish_piece(self) -> None:
        if self.offset > self._piece:
            self._ingest.write_line(self._piece, self.offset - self._piece, self._crc)
        self._piece, self._crc = self.offset, 0
