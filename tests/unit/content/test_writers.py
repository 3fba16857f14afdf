"""Several writers in one ingest: whatever they do at the same time, every byte is written once, kept and proved."""

from __future__ import annotations

import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelmount.content import checkpoints, ranges
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.errors import Internal, NoSpace
from modelmount.oci.digest import Digest
from modelmount.system import atomic

from .downloads import (
    BUFFER,
    PIECE,
    assert_right,
    content,
    descriptors,
    died,
    directory,
    feed,
    open_ingest,
    read,
    recorded,
    resumed,
    wait_for,
    write,
    written,
)

DATA = content(6 * PIECE + 12_345)
DIGEST = Digest.of(DATA)
ENOSPC = OSError(28, "No space left on device")


def together(*calls: Callable[[], None]) -> None:
    """Run them in threads that start at the same moment; raises the first error when all have ended."""
    start = threading.Barrier(len(calls))

    def begin(call: Callable[[], None]) -> None:
        start.wait()
        call()

    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(begin, call) for call in calls]:
            done.result()


class Gate:
    """A system call that waits, the first time it is made, until the test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.calls = 0
        self._original = getattr(os, name)
        monkeypatch.setattr(os, name, self._call)

    def _call(self, *arguments: object) -> object:
        self.calls += 1
        if not self.reached.is_set():
            self.reached.set()
            assert self.open.wait(60)
        return self._original(*arguments)


class WatchedLock:
    """A lock that tells when somebody begins to wait for it."""

    def __init__(self) -> None:
        self.waited_for = threading.Event()
        self._lock = threading.Lock()

    def acquire(self, blocking: bool = True) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        self.waited_for.set()
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def watch(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> WatchedLock:
    """The lock under which checkpoints are made."""
    lock = WatchedLock()
    monkeypatch.setattr(ingest.checkpoints, "lock", lock)
    return lock


@contextmanager
def in_background(gate: Gate, call: Callable[[], None]) -> Iterator[Future[None]]:
    """The call in a thread of its own, which has ended when the block has: the gate is open then."""
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(call)
        finally:
            gate.open.set()


# -- at the same time


@pytest.mark.parametrize("writers", [2, 8])
def test_segments_in_any_order_make_the_blob(store: Store, writers: int) -> None:
    ingest = open_ingest(store, DATA)
    segment = PIECE // 3 + 77
    starts = list(range(0, len(DATA), segment))
    random.Random(writers).shuffle(starts)
    queue = deque(starts)

    def work() -> None:
        while queue:
            try:
                first = queue.popleft()
            except IndexError:
                return
            with ingest.writer(first) as writer:
                write(writer, DATA[: first + segment], buffer=BUFFER // 4 - first % 99)

    together(*[work] * writers)
    assert ingest.missing == ()
    ingest.commit_blob()
    assert store.blob_path(DIGEST).read_bytes() == DATA
    assert list((store.root / "ingest").iterdir()) == []


def test_a_reader_close_behind_finds_only_right_bytes(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    middle = len(DATA) // 2

    def follow() -> None:
        position = 0
        while position < len(DATA):
            limit = ingest.offset
            assert read(ingest, limit - position, position) == DATA[position:limit]
            position = limit

    def fill(first: int, last: int) -> Callable[[], None]:
        def call() -> None:
            with ingest.writer(first) as writer:
                write(writer, DATA[:last], buffer=4096)

        return call

    together(follow, fill(0, middle), fill(middle, len(DATA)))
    ingest.commit_blob()
    assert store.blob_path(DIGEST).read_bytes() == DATA


def test_the_offset_waits_for_the_first_gap(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    offsets = []
    with ingest.writer(2 * PIECE) as writer:
        write(writer, DATA[: 3 * PIECE])
    offsets.append(ingest.offset)
    with ingest.writer(0) as writer:
        for end in (PIECE, 2 * PIECE):
            write(writer, DATA[:end])
            offsets.append(ingest.offset)
    assert offsets == [0, PIECE, 3 * PIECE]
    assert ingest.missing == ((3 * PIECE, len(DATA)),)
    ingest.discard()


def test_what_is_written_stays_when_another_source_says_otherwise(store: Store) -> None:
    other = content(len(DATA), "another source")
    ingest = open_ingest(store, DATA)
    with ingest.writer(PIECE) as writer:
        write(writer, DATA[: 2 * PIECE])
    with ingest.writer(PIECE // 2) as writer:
        writer.append(memoryview(other)[PIECE // 2 : 3 * PIECE])
        assert writer.offset == 3 * PIECE
    found = read(ingest, 3 * PIECE)
    assert found[PIECE : 2 * PIECE] == DATA[PIECE : 2 * PIECE]
    assert found[PIECE // 2 : PIECE] == other[PIECE // 2 : PIECE]
    assert found[2 * PIECE :] == other[2 * PIECE : 3 * PIECE]
    assert ingest.missing == ((0, PIECE // 2), (3 * PIECE, len(DATA)))
    died(ingest)
    ingest = open_ingest(store, DATA)
    assert ranges.within(ingest.missing, PIECE, 2 * PIECE) == []
    ingest.discard()


def test_two_writers_at_the_same_bytes_are_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = open_ingest(store, DATA)
    first, second = ingest.writer(0), ingest.writer(BUFFER - 1)
    gate = Gate(monkeypatch, "pwrite")
    with in_background(gate, lambda: first.append(memoryview(DATA)[:BUFFER])) as done:
        assert gate.reached.wait(60)
        with pytest.raises(Internal, match="two writers write byte"):
            second.append(memoryview(DATA)[BUFFER - 1 : BUFFER])
        ingest.writer(BUFFER).append(memoryview(DATA)[BUFFER : 2 * BUFFER])
        gate.open.set()
        done.result()
    second.append(memoryview(DATA)[BUFFER - 1 : BUFFER])  # afterwards it is just written already
    assert ingest.missing == ((2 * BUFFER, len(DATA)),)
    assert_right(ingest, DATA)
    ingest.close()


def test_nothing_is_written_beyond_the_end(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    writer = ingest.writer(len(DATA) - 5)
    with pytest.raises(Internal, match=f"refusing to write byte {len(DATA) + 1}"):
        writer.append(memoryview(DATA)[-6:])
    assert ingest.path.stat().st_size == 0
    writer.append(memoryview(DATA)[-5:])
    feed(ingest, DATA)
    ingest.commit_blob()
    assert store.blob_path(DIGEST).read_bytes() == DATA


# -- resuming


def test_a_resumed_download_fetches_the_holes_only(store: Store) -> None:
    kept = [(0, PIECE + 3), (2 * PIECE, 2 * PIECE + 9), (3 * PIECE - 1, 4 * PIECE), (5 * PIECE + 5, len(DATA))]
    ingest = open_ingest(store, DATA)
    for first, last in reversed(kept):
        with ingest.writer(first) as writer:
            write(writer, DATA[:last])
    ingest.close()
    ingest = open_ingest(store, DATA)
    assert ingest.missing == tuple((kept[n][1], kept[n + 1][0]) for n in range(3))
    assert_right(ingest, DATA)
    feed(ingest, DATA)
    ingest.commit_blob()
    assert store.blob_path(DIGEST).read_bytes() == DATA


def test_a_killed_download_loses_only_the_pieces_in_hand(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    for first, last in ((0, 2 * PIECE - 1), (2 * PIECE, 3 * PIECE + 5), (4 * PIECE, 5 * PIECE), (5 * PIECE, len(DATA))):
        write(ingest.writer(first), DATA[:last])
    died(ingest)
    assert resumed(store, DATA) == (
        (PIECE, 2 * PIECE),
        (3 * PIECE, 4 * PIECE),
        (6 * PIECE, len(DATA)),
    )


@pytest.mark.parametrize("buffer", [1000, 700_001, 3 * PIECE])
def test_a_kill_loses_less_than_a_piece_whatever_the_buffers(store: Store, buffer: int) -> None:
    ingest = open_ingest(store, DATA)
    writer = ingest.writer(12)
    while writer.offset < 4 * PIECE:
        writer.append(memoryview(DATA)[writer.offset : writer.offset + buffer])
    died(ingest)
    missing = resumed(store, DATA)
    assert missing[0] == (0, 12)
    assert writer.offset - missing[1][0] < PIECE


# -- the end comes while writers are open


def test_the_end_keeps_what_writers_had_in_hand(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    for first in (0, 3 * PIECE):
        write(ingest.writer(first), DATA[: first + 777])
    ingest.close()
    assert resumed(store, DATA) == ((777, 3 * PIECE), (3 * PIECE + 777, len(DATA)))


def opens(fd: int) -> Path | None:
    """What the descriptor is of; None when it has gone."""
    try:
        return Path(f"/proc/self/fd/{fd}").readlink()
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("end", [Ingest.close, Ingest.discard, Ingest.commit_blob])
def test_after_the_end_a_writer_touches_nothing(store: Store, tmp_path: Path, end: Callable[[Ingest], None]) -> None:
    ingest = open_ingest(store, DATA)
    number = next(n for n in map(int, os.listdir("/proc/self/fd")) if opens(n) == ingest.path)
    late = ingest.writer(0)
    feed(ingest, DATA)
    end(ingest)
    innocent, numbers = tmp_path / "innocent", list[int]()
    while number not in numbers:
        numbers.append(os.open(innocent, os.O_RDWR | os.O_CREAT))
    for call in (lambda: late.append(memoryview(content(9, "other"))), lambda: ingest.writer(0), ingest.flush):
        with pytest.raises(Internal, match="has ended"):
            call()
    late.close()
    for fd in numbers:
        os.close(fd)
    assert innocent.read_bytes() == b""
    if end is Ingest.commit_blob:
        assert store.blob_path(DIGEST).read_bytes() == DATA


def test_a_writer_changes_nothing_of_a_blob_whose_commit_failed_half_way(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    late = ingest.writer(0)
    feed(ingest, DATA)
    with atomic.armed("content.blob.after_rename=error(ENOSPC)"), pytest.raises(NoSpace):
        ingest.commit_blob()
    late.append(memoryview(content(len(DATA), "other")))
    ingest.close()
    assert store.blob_path(DIGEST).read_bytes() == DATA


def test_a_close_waits_for_the_write_under_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = open_ingest(store, DATA)
    writer = ingest.writer(0)
    gate = Gate(monkeypatch, "pwrite")
    with in_background(gate, lambda: writer.append(memoryview(DATA)[:BUFFER])) as append:
        assert gate.reached.wait(60)
        with in_background(gate, ingest.close) as close:
            wait_for(lambda: ingest._ended)
            assert not close.done()
            gate.open.set()
            close.result()
        append.result()
    assert resumed(store, DATA) == ((BUFFER, len(DATA)),)


def test_a_close_waits_for_the_checkpoint_under_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, BUFFER)
    lock = watch(ingest, monkeypatch)
    gate = Gate(monkeypatch, "fdatasync")
    with in_background(gate, ingest.flush) as flush:
        assert gate.reached.wait(60)
        with in_background(gate, ingest.close) as close:
            assert lock.waited_for.wait(60)
            assert not close.done()
            gate.open.set()
            close.result()
        flush.result()
    assert resumed(store, DATA) == ((BUFFER, len(DATA)),)


@pytest.mark.parametrize("end", [Ingest.close, Ingest.discard])
def test_an_end_in_the_middle_of_everything_leaves_nothing_open(store: Store, end: Callable[[Ingest], None]) -> None:
    before = descriptors()
    ingest = open_ingest(store, DATA)
    under_way = threading.Barrier(4)

    def until_ended(work: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            under_way.wait()
            with pytest.raises(Internal, match=r"has ended|was closed"):
                while True:
                    work()

        return call

    def fill(first: int) -> Callable[[], None]:
        writer = ingest.writer(first)

        def work() -> None:
            if writer.offset < first + PIECE:
                writer.append(memoryview(DATA)[writer.offset : writer.offset + 1])
            else:
                ingest.writer(first).close()

        return until_ended(work)

    def finish() -> None:
        under_way.wait()
        wait_for(lambda: written(ingest) > 1000)
        end(ingest)

    together(fill(0), fill(3 * PIECE), until_ended(ingest.flush), finish)
    assert descriptors() == before
    assert directory(store, DATA).exists() == (end is Ingest.close)
    missing = resumed(store, DATA)
    if end is Ingest.close:
        assert missing == ingest.missing
    else:
        assert missing == ((0, len(DATA)),)


# -- full disks


def test_a_disk_that_fills_in_the_middle_of_a_write_stops_nobody_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = open_ingest(store, DATA)
    unlucky, lucky = ingest.writer(0), ingest.writer(PIECE)
    write(unlucky, DATA[:BUFFER])
    pwrite, left = os.pwrite, iter([1000])

    def filling(fd: int, data: memoryview, offset: int) -> int:
        count = next(left, None)
        if count is None:
            raise ENOSPC
        return pwrite(fd, data[:count], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", filling)
        with pytest.raises(NoSpace, match="no space left to write"):
            write(unlucky, DATA[: 2 * BUFFER])
    assert unlucky.offset == BUFFER
    assert ingest.missing == ((BUFFER, len(DATA)),)
    write(lucky, DATA[: 2 * PIECE])
    write(unlucky, DATA[: 3 * BUFFER])
    ingest.close()
    assert resumed(store, DATA) == ((3 * BUFFER, PIECE), (2 * PIECE, len(DATA)))


def test_a_line_that_found_no_room_is_written_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = open_ingest(store, DATA)
    writer = ingest.writer(0)

    def full(*_: object) -> int:
        raise ENOSPC

    for end in (PIECE, PIECE + BUFFER):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(NoSpace, match="write the journal"):
                write(writer, DATA[:end])
    assert writer.offset == PIECE
    write(writer, DATA[: 2 * PIECE + 9])
    died(ingest)
    assert resumed(store, DATA) == ((2 * PIECE, len(DATA)),)


def test_a_checkpoint_that_finds_no_room_condemns_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", 1)
    ingest = open_ingest(store, DATA)
    writer = ingest.writer(0)

    def full(*_: object) -> int:
        raise ENOSPC

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for end in (9, 12):
            with pytest.raises(NoSpace, match="write the journal"):
                write(writer, DATA[:end])
        with pytest.raises(NoSpace, match="write the journal"):
            ingest.flush()
    assert writer.offset == 9
    write(writer, DATA[:12])
    died(ingest)
    assert resumed(store, DATA) == ((12, len(DATA)),)


# -- checkpoints


def test_a_checkpoint_covers_the_pieces_in_all_hands(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    for first in (0, PIECE, 4 * PIECE):
        write(ingest.writer(first), DATA[: first + 1234])
    ingest.flush()
    died(ingest)
    assert resumed(store, DATA) == ((1234, PIECE), (PIECE + 1234, 4 * PIECE), (4 * PIECE + 1234, len(DATA)))


def test_writers_go_on_behind_a_checkpoint(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    writers = [ingest.writer(0), ingest.writer(3 * PIECE)]
    for _ in range(3):
        for writer in writers:
            write(writer, DATA[: writer.offset + 5 * BUFFER + 1])
        ingest.flush()
    ingest.close()
    end = 3 * (5 * BUFFER + 1)
    assert resumed(store, DATA) == ((end, 3 * PIECE), (3 * PIECE + end, len(DATA)))


def test_the_bytes_of_all_writers_count_for_a_checkpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", 2 * PIECE)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 1e9)
    ingest = open_ingest(store, DATA)
    with recorded(monkeypatch, store.root) as calls:
        write(ingest.writer(0), DATA[:PIECE])
        write(ingest.writer(2 * PIECE), DATA[: 3 * PIECE - 1])
        assert calls == []
        write(ingest.writer(3 * PIECE), DATA[: 3 * PIECE + 1])
        assert [call.split("/")[-1] for call in calls[:2]] == ["data 600", "journal 600"]
    ingest.discard()


def test_no_more_is_written_behind_a_slow_checkpoint_than_may_be_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", PIECE)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 1e9)
    ingest = open_ingest(store, DATA)
    lock = watch(ingest, monkeypatch)
    gate = Gate(monkeypatch, "fdatasync")
    with in_background(gate, lambda: write(ingest.writer(0), DATA[:PIECE])) as first:
        assert gate.reached.wait(60)
        with in_background(gate, lambda: write(ingest.writer(PIECE), DATA)) as second:
            assert lock.waited_for.wait(60)
            assert written(ingest) == 2 * PIECE
            gate.open.set()
            second.result()
        first.result()
    ingest.commit_blob()
    assert store.blob_path(DIGEST).read_bytes() == DATA


# -- large downloads


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download counts as a large one."""
    monkeypatch.setattr(checkpoints, "KEEPER_BYTES", 0)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", PIECE)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 1e9)


@pytest.mark.usefixtures("kept")
def test_a_large_download_s_checkpoints_are_made_beside_its_writers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    synced = threading.Event()
    original = os.fdatasync

    def noted(fd: int) -> None:
        threads.add(threading.current_thread().name)
        original(fd)
        synced.set()

    monkeypatch.setattr(os, "fdatasync", noted)
    ingest = open_ingest(store, DATA)
    write(ingest.writer(0), DATA[: PIECE + 1])
    assert synced.wait(30)
    assert {name.partition("-")[0] for name in threads} == {"sync"}
    before = {thread for thread in threading.enumerate() if thread.name.startswith("sync-")}
    ingest.close()
    assert len(before - set(threading.enumerate())) == 1


@pytest.mark.usefixtures("kept")
def test_a_failed_checkpoint_beside_the_writers_stops_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fail(fd: int) -> None:
        failed.set()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    ingest = open_ingest(store, DATA)
    writer = ingest.writer(0)
    write(writer, DATA[: PIECE + 1])
    assert failed.wait(30)
    with pytest.raises(Internal, match="make the download of"):
        while True:
            write(writer, DATA[: writer.offset + 1])
    ingest.close()
    assert not ingest.directory.exists()


def test_what_comes_during_a_checkpoint_counts_for_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", PIECE)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 1e9)
    ingest = open_ingest(store, DATA)
    gate = Gate(monkeypatch, "fdatasync")
    with in_background(gate, lambda: write(ingest.writer(0), DATA[:PIECE])) as first:
        assert gate.reached.wait(60)
        writer = ingest.writer(PIECE)
        write(writer, DATA[: 2 * PIECE])
        gate.open.set()
        first.result()
    before = gate.calls
    writer.append(memoryview(DATA)[2 * PIECE : 2 * PIECE + 1])
    assert gate.calls == before + 2
    ingest.close()


def test_a_checkpoint_waits_for_no_writer_at_a_write_and_leaves_its_piece_pending(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = open_ingest(store, DATA)
    slow = ingest.writer(0)
    write(slow, DATA[:1234])
    write(ingest.writer(PIECE), DATA[: 3 * PIECE])
    gate = Gate(monkeypatch, "pwrite")
    with in_background(gate, lambda: slow.append(memoryview(DATA)[1234:2345])) as held:
        assert gate.reached.wait(60)
        with ingest.checkpoints.lock:
            ingest.checkpoints.make()
        assert ingest.checkpoints.pending == 2345
        gate.open.set()
        held.result()
    ingest.flush()
    assert ingest.checkpoints.pending == 0
    died(ingest)
    assert resumed(store, DATA) == ((2345, PIECE), (3 * PIECE, len(DATA)))


def test_what_was_not_written_or_not_journalled_waits_for_no_checkpoint(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise ENOSPC

    ingest = open_ingest(store, DATA)
    writer = ingest.writer(0)
    write(writer, DATA[:9])
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(NoSpace):
            write(writer, DATA[:12])
    assert ingest.checkpoints.pending == 9
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        writer.close()
    assert ingest.checkpoints.pending == 0
    ingest.close()


# -- the thread that makes the checkpoints of large downloads


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download has one, and much to do for it."""
    monkeypatch.setattr(checkpoints, "KEEPER_BYTES", 0)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", PIECE)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 1e9)


@pytest.mark.usefixtures("keeper")
def test_a_large_download_ends_with_all_its_threads(store: Store) -> None:
    before = set(threading.enumerate())
    for end in (Ingest.discard, Ingest.commit_blob, Ingest.close):
        ingest = open_ingest(store, DATA)
        assert len(set(threading.enumerate()) - before) == 1
        feed(ingest, DATA)
        end(ingest)
        assert set(threading.enumerate()) <= before
    assert store.blob_path(DIGEST).read_bytes() == DATA


def test_a_small_one_and_the_small_rest_of_a_large_one_need_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "KEEPER_BYTES", PIECE)
    before = set(threading.enumerate())
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, 6 * PIECE)
    ingest.close()
    ingest = open_ingest(store, DATA)
    assert set(threading.enumerate()) <= before
    ingest.discard()


@pytest.mark.usefixtures("keeper")
def test_writers_go_on_while_a_checkpoint_is_made_until_too_much_would_be_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = open_ingest(store, DATA)
    lock = watch(ingest, monkeypatch)
    gate = Gate(monkeypatch, "fdatasync")
    write(ingest.writer(0), DATA[:PIECE])
    with in_background(gate, lambda: write(ingest.writer(PIECE), DATA)) as rest:
        assert gate.reached.wait(60)
        assert lock.waited_for.wait(60)
        assert written(ingest) == 2 * PIECE
        gate.open.set()
        rest.result()
    ingest.commit_blob()
    assert store.blob_path(DIGEST).read_bytes() == DATA


@pytest.mark.usefixtures("keeper")
def test_writers_are_told_of_a_sync_that_failed_beside_them(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    writer = ingest.writer(0)
    with atomic.armed("content.ingest.checkpoint=error(EIO)"):
        write(writer, DATA[:PIECE])
        wait_for(lambda: ingest._condemned is not None)
    with pytest.raises(Internal, match="make the download of"):
        write(writer, DATA[: PIECE + 1])
    with pytest.raises(Internal, match="make the download of"):
        ingest.commit_blob()
    ingest.close()
    assert not directory(store, DATA).exists()


@pytest.mark.usefixtures("keeper")
def test_checkpoints_are_made_again_when_a_full_disk_has_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", BUFFER)
    ingest = open_ingest(store, DATA)
    writer, syncs, tried = ingest.writer(0), Gate(monkeypatch, "fdatasync"), threading.Event()
    syncs.open.set()

    def full(*_: object) -> int:
        tried.set()
        raise ENOSPC

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        write(writer, DATA[:BUFFER])
        assert tried.wait(60)
    assert syncs.calls == 0
    write(writer, DATA[: BUFFER + 1])
    wait_for(lambda: syncs.calls >= 2)
    died(ingest)
    assert resumed(store, DATA)[0][0] >= BUFFER


@pytest.mark.usefixtures("keeper")
def test_a_large_download_of_several_writers_makes_the_blob(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    ends = [*range(0, len(DATA), PIECE + 5), len(DATA)]
    together(*(lambda n=n: write(ingest.writer(ends[n]), DATA[: ends[n + 1]], 9999) for n in range(len(ends) - 1)))
    ingest.commit_blob()
    assert store.blob_path(DIGEST).read_bytes() == DATA
