"""What a journal proves: whatever any of its lines is right about, however they overlap, and nothing else."""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.content import journal

from .downloads import content

DATA = content(300)


@dataclass
class Files:
    """A journal and the data it is about."""

    journal: int
    data: int

    def line(self, offset: int, length: int, *, about: bytes = DATA) -> None:
        journal.append(self.journal, offset, length, zlib.crc32(about[offset : offset + length]))

    def read_into(self, view: memoryview, offset: int) -> int:
        return os.preadv(self.data, [view], offset)

    def proved(self, size: int = len(DATA)) -> list[tuple[int, int]] | None:
        return journal.proved(self.journal, self.read_into, size, lambda: False)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    (tmp_path / "data").write_bytes(DATA)
    files = Files(
        os.open(tmp_path / "journal", os.O_RDWR | os.O_CREAT | os.O_APPEND), os.open(tmp_path / "data", os.O_RDWR)
    )
    yield files
    os.close(files.journal)
    os.close(files.data)


def test_pieces_prove_themselves_in_any_order(files: Files) -> None:
    for offset in (200, 0, 100):
        files.line(offset, 50)
    assert files.proved() == [(0, 50), (100, 150), (200, 250)]


def test_pieces_that_touch_are_one_range(files: Files) -> None:
    for offset in (100, 50, 0):
        files.line(offset, 50)
    assert files.proved() == [(0, 150)]


def test_a_line_that_reaches_beyond_another_proves_its_end_too(files: Files) -> None:
    files.line(0, 100)
    files.line(50, 100)
    files.line(10, 20)
    assert files.proved() == [(0, 150)]


@pytest.mark.parametrize("longer_first", [True, False])
def test_of_two_lines_for_one_offset_the_longer_counts_if_it_is_right(files: Files, longer_first: bool) -> None:
    for length in (100, 40) if longer_first else (40, 100):
        files.line(0, length)
    assert files.proved() == [(0, 100)]


def test_a_shorter_line_counts_where_a_longer_one_is_wrong(files: Files) -> None:
    files.line(0, 40)
    files.line(0, 100)
    os.pwrite(files.data, b"\0\0", 60)
    assert files.proved() == [(0, 40)]


def test_an_old_line_counts_again_once_its_bytes_are_back(files: Files) -> None:
    files.line(0, 100)
    os.pwrite(files.data, b"\0\0", 60)
    assert files.proved() == []
    os.pwrite(files.data, DATA[60:62], 60)
    assert files.proved() == [(0, 100)]


def test_of_lines_that_contradict_each_other_the_right_one_counts(files: Files) -> None:
    for about in (DATA, content(300, "wrong"), content(300, "worse")):
        files.line(100, 50, about=about)
    assert files.proved() == [(100, 150)]
    os.pwrite(files.data, content(300, "neither"), 0)
    assert files.proved() == []


def test_bytes_beyond_the_size_or_the_file_are_not_proved(files: Files) -> None:
    for offset in (0, 100, 200):
        files.line(offset, 100)
    os.ftruncate(files.data, 199)
    assert files.proved() == [(0, 100)]
    assert files.proved(99) == []


def test_a_line_of_nothing_proves_nothing(files: Files) -> None:
    files.line(10, 0)
    assert files.proved() == []


@pytest.mark.parametrize(
    "damage", [b"1 2 3\n", b"\n-5 10 00000000 00000000\n", b"\n" + b"9" * 5000 + b" 1 2 3\n", bytes(99)]
)
def test_what_is_no_line_is_passed_over(files: Files, damage: bytes) -> None:
    files.line(0, 10)
    os.write(files.journal, damage)
    files.line(20, 10)
    assert files.proved() == [(0, 10), (20, 30)]


def test_a_torn_line_doesnt_spoil_the_next(files: Files) -> None:
    files.line(0, 10)
    for kept in range(1, 20):
        end = os.fstat(files.journal).st_size
        files.line(10 * kept, 10)
        os.ftruncate(files.journal, end + kept)
    files.line(250, 10)
    assert files.proved() == [(0, 10), (250, 260)]


def test_a_cancel_ends_the_reading(files: Files) -> None:
    files.line(0, 10)
    files.line(50, 10)
    answers = iter([False, True])
    assert journal.proved(files.journal, files.read_into, len(DATA), lambda: next(answers)) is None


def test_a_short_write_is_a_full_disk(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:9]))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            files.line(0, 10)
    files.line(20, 10)
    assert files.proved() == [(20, 30)]


def test_lines_of_many_threads_stay_whole(files: Files) -> None:
    start = threading.Barrier(4)

    def run(first: int) -> None:
        start.wait()
        for offset in range(first, len(DATA), 4):
            files.line(offset, 1)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.proved() == [(0, len(DATA))]


line = st.tuples(st.integers(0, 59), st.integers(1, 60), st.booleans())


@given(lines=st.lists(line, max_size=12), flipped=st.sets(st.integers(0, 59), max_size=3))
def test_exactly_the_union_of_the_right_lines_is_proved(
    lines: list[tuple[int, int, bool]], flipped: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    size, expected = 60, set[int]()
    now = bytes(byte ^ (at in flipped) for at, byte in enumerate(DATA[:size]))
    directory = tmp_path_factory.mktemp("journal")
    (directory / "data").write_bytes(now)
    with (directory / "journal").open("a+b", buffering=0) as file, (directory / "data").open("rb") as data:
        for offset, length, is_right in lines:
            about = DATA if is_right else content(300, "wrong")
            journal.append(file.fileno(), offset, length, zlib.crc32(about[offset : offset + length]))
            if offset + length <= size and now[offset : offset + length] == about[offset : offset + length]:
                expected |= set(range(offset, offset + length))
        found = journal.proved(
            file.fileno(), lambda view, offset: os.preadv(data.fileno(), [view], offset), size, lambda: False
        )
    assert found is not None
    assert {byte for first, last in found for byte in range(first, last)} == expected
    assert all(found[n][1] < found[n + 1][0] for n in range(len(found) - 1))
