"""Random histories of a download: writers in any order, checkpoints, full disks, ends, kills and damage.

Whatever happened, `missing` is exactly what no line of the journal proves, what isn't missing is right, and nothing is
lost but the pieces in hand and what was damaged.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelmount.content import checkpoints
from modelmount.content import ingest as ingests
from modelmount.content import writer as writers
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.content.writer import Writer
from modelmount.errors import Cancelled, NoSpace
from modelmount.oci.digest import Digest

from .downloads import SCOPE, assert_right, content, died, directory, feed, open_ingest

SIZE = 200
DATA = content(SIZE)
DIGEST = Digest.of(DATA)
PIECE = 16
"""So small that few steps reach every state."""

choices = st.integers(0, 99)
positions = st.integers(0, SIZE - 1)
counts = st.integers(1, 3 * PIECE)
damages = st.tuples(st.sampled_from(["data", "journal"]), positions, st.none() | st.binary(min_size=1, max_size=40))


def disk_full(*_: object) -> int:
    raise OSError(28, "No space left on device")


class Histories(RuleBasedStateMachine):
    """One download in one store."""

    ingest: Ingest

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="mm-history-"))
        self.store = Store(self.root / "store")
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(writers, "PIECE_BYTES", PIECE)
        self.patch.setattr(checkpoints, "CHECKPOINT_BYTES", 3 * PIECE)
        self.writers: list[Writer] = []
        self.started: dict[Writer, int] = {}
        self.written, self.lost = set[int](), set[int]()

    def teardown(self) -> None:
        self.ingest.discard()
        self.patch.undo()
        shutil.rmtree(self.root)

    # -- what the files say, read without the code under test

    @property
    def files(self) -> tuple[bytes, bytes]:
        where = directory(self.store, DATA)
        return (where / "data").read_bytes(), (where / "journal").read_bytes()

    def proved(self) -> set[int]:
        """The bytes of which a whole line is right."""
        data, journal = self.files
        found: set[int] = set()
        for line in journal.split(b"\n"):
            body, _, check = line.rpartition(b" ")
            if not body or check != b"%08x" % zlib.crc32(body):
                continue
            offset, length, crc = body.split(b" ")
            span = range(int(offset), int(offset) + int(length))
            if span.stop <= len(data) and zlib.crc32(data[span.start : span.stop]) == int(crc, 16):
                found |= set(span)
        return found

    # -- writing

    @initialize()
    def begin(self) -> None:
        self.ingest = open_ingest(self.store, DATA)

    @rule(offset=positions, count=counts)
    def write_anywhere(self, offset: int, count: int) -> None:
        self._append(self._open(offset), count)

    @precondition(lambda self: self.ingest.missing)
    @rule(which=choices, skipped=st.integers(0, 3 * PIECE), count=counts)
    def write_in_a_hole(self, which: int, skipped: int, count: int) -> None:
        first, last = self.ingest.missing[which % len(self.ingest.missing)]
        self._append(self._open(min(first + skipped, last - 1)), count)

    @precondition(lambda self: self.writers)
    @rule(which=choices, count=counts)
    def go_on(self, which: int, count: int) -> None:
        self._append(self.writers[which % len(self.writers)], count)

    @precondition(lambda self: self.writers)
    @rule(which=choices, count=counts, call=st.sampled_from(["write", "pwrite"]))
    def go_on_with_a_full_disk(self, which: int, count: int, call: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, disk_full)
            try:
                self._append(self.writers[which % len(self.writers)], count)
            except NoSpace:
                return

    def _open(self, offset: int) -> Writer:
        writer = self.ingest.writer(offset)
        self.writers.append(writer)
        self.started[writer] = offset
        return writer

    def _append(self, writer: Writer, count: int) -> None:
        before = writer.offset
        try:
            writer.append(memoryview(DATA)[before : before + count])
        finally:
            self.written |= set(range(before, writer.offset))

    @precondition(lambda self: self.writers)
    @rule(which=choices)
    def close_writer(self, which: int) -> None:
        writer = self.writers.pop(which % len(self.writers))
        writer.close()
        assert set(range(self.started[writer], writer.offset)) <= self.proved()

    @precondition(lambda self: self.writers)
    @rule(which=choices)
    def close_writer_on_a_full_disk(self, which: int) -> None:
        writer = self.writers.pop(which % len(self.writers))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", disk_full)
            writer.close()
        self.lost |= self._in_hand(writer)

    def _in_hand(self, writer: Writer) -> set[int]:
        """Everything before this is journalled, for a writer has one piece in hand at most."""
        return set(range(max(self.started[writer], writer.offset - PIECE), writer.offset))

    @rule()
    def flush(self) -> None:
        self.ingest.flush()
        assert self.written - self.lost <= self.proved()

    # -- ends

    @contextmanager
    def _resuming(self) -> Iterator[None]:
        yield
        self.writers.clear()
        proved = self.proved()
        self.ingest = open_ingest(self.store, DATA)
        self.written, self.lost = proved, set()

    @rule()
    def close(self) -> None:
        with self._resuming():
            self.ingest.close()
            assert self.written - self.lost <= self.proved()

    @rule(damages=st.lists(damages, max_size=2))
    def kill(self, damages: list[tuple[str, int, bytes | None]]) -> None:
        with self._resuming():
            died(self.ingest)
            in_hand = {byte for writer in self.writers for byte in self._in_hand(writer)}
            assert self.written - self.lost - in_hand <= self.proved()
            for name, at, new in damages:
                self._damage(directory(self.store, DATA) / name, at, new)

    def _damage(self, path: Path, at: int, new: bytes | None) -> None:
        """Put `new` there, or cut off so much where there is nothing new."""
        size = path.stat().st_size
        if new is None:
            os.truncate(path, max(size - at, 0))
        else:
            with path.open("r+b") as file:
                file.seek(at % (size + 1))
                file.write(new)

    @rule(asked=st.integers(0, 3))
    def close_and_cancel_the_next(self, asked: int) -> None:
        with self._resuming():
            self.ingest.close()
            before, answers = self.files, iter([False] * asked)
            held = self.store.lock("ingest-" + ingests.name(DIGEST, SCOPE, ingests.RAW)).acquire(timeout=0)
            try:
                Ingest.open(
                    self.store, DIGEST, SIZE, SCOPE, ingests.RAW, held, cancelled=lambda: next(answers, True)
                ).close()
            except Cancelled:
                assert self.files == before

    @precondition(lambda self: len(self.written) > SIZE // 2)
    @rule()
    def finish(self) -> None:
        feed(self.ingest, DATA)
        self.ingest.commit_blob()
        assert self.store.blob_path(DIGEST).read_bytes() == DATA
        self.store.blob_path(DIGEST).unlink()
        self.writers.clear()
        self.written, self.lost = set(), set()
        self.ingest = open_ingest(self.store, DATA)

    # -- always

    @invariant()
    def what_is_missing_is_what_was_neither_proved_nor_written(self) -> None:
        if hasattr(self, "ingest"):
            assert {byte for first, last in self.ingest.missing for byte in range(first, last)} == (
                set(range(SIZE)) - self.written
            )

    @invariant()
    def what_is_not_missing_is_right(self) -> None:
        if hasattr(self, "ingest"):
            assert_right(self.ingest, DATA)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=80, stateful_step_count=40)
