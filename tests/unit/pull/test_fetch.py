"""One blob from a source into its ingest: whatever the source does, only the right bytes count, and those only once."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from modelmount.content import ingest as ingests
from modelmount.content.backoff import Backoff
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.errors import Cancelled, IntegrityError, Unavailable
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.pull import fetch
from modelmount.pull.fetch import Cancel, Download, Line
from modelmount.pull.progress import Expected, Progress
from modelmount.transport.retry import Policy
from tests.fakes.source import Fault, MemorySource

SCOPE = "0" * 32
BLOB = os.urandom((5 << 20) + 1234)
SMALL = b'{"model_type": "llama"}\n'


class Impatient(Policy):
    """The usual policy without its waiting."""

    def delay(self, failures: int, retry_after: float | None = None) -> float:
        return 0.0


class Bench:
    """A store, a source with one blob, and what is needed to fetch it."""

    def __init__(self, directory: Path, content: bytes = BLOB) -> None:
        self.store = Store(directory / "store")
        self.source = MemorySource()
        self.descriptor: Descriptor = self.source.put(content)
        self.cancel = Cancel()
        self.progress = Progress()
        expected = Expected((str(self.descriptor.digest), ingests.RAW), "model.bin", len(content))
        self.progress.expect([expected])
        self.counters = self.progress.file(expected.key)

    def open(self) -> Ingest:
        digest = self.descriptor.digest
        held = self.store.lock("ingest-" + ingests.name(digest, SCOPE, ingests.RAW)).acquire(timeout=0)
        return Ingest.open(self.store, digest, self.descriptor.size, SCOPE, ingests.RAW, held)

    def backoff(self) -> Backoff:
        return Backoff(self.store, self.descriptor.digest, SCOPE, self.source.name)

    def fetch(self, threads: int = 1, length: int | None = None) -> bytes:
        """Fetch and commit; the blob's bytes in the store."""
        ingest = self.open()
        try:
            self.download(ingest, threads, length)
            ingest.commit_blob()
        finally:
            ingest.close()
        return self.store.blob_path(self.descriptor.digest).read_bytes()

    def download(self, ingest: Ingest, threads: int, length: int | None) -> None:
        """Take segments in `threads` threads until nothing is left, and verify."""
        download = Download(
            ingest, self.descriptor, self.source, self.backoff(), self.counters, self.cancel, policy=Impatient()
        )
        errors: list[BaseException] = []
        workers = [threading.Thread(target=self._work, args=(download, length, errors)) for _ in range(threads - 1)]
        try:
            for worker in workers:
                worker.start()
            self._work(download, length, errors)
            for worker in workers:
                worker.join()
            if errors:
                raise errors[0]
            if self.cancel():
                raise fetch.stopped(self.descriptor.digest)
            download.verify()
        finally:
            download.close()

    def _work(self, download: Download, length: int | None, errors: list[BaseException]) -> None:
        line = Line()
        while not download.segments.is_complete and not errors and not self.cancel():
            segment = download.take(length)
            if segment is None:
                continue
            try:
                download.fetch(segment, line)
            except BaseException as e:  # noqa: BLE001 - raised again by whoever started the threads
                errors.append(e)
            finally:
                download.finish(segment)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("content", [b"", SMALL, BLOB], ids=["empty", "small", "large"])
def test_a_blob_arrives_whole_in_one_request(tmp_path: Path, content: bytes) -> None:
    bench = Bench(tmp_path, content)
    assert bench.fetch() == content
    assert len(bench.source.opens) == (1 if content else 0)


def test_after_a_cut_it_goes_on_at_the_very_next_byte(bench: Bench) -> None:
    bench.source.faults.extend([Fault(cut=1_000_001), Fault(cut=7)])
    assert bench.fetch() == BLOB
    assert [offset for _, offset in bench.source.opens] == [0, 1_000_001, 1_000_008]


def test_a_source_that_ignores_ranges_sends_the_head_again_and_it_is_skipped(bench: Bench) -> None:
    bench.source.faults.extend([Fault(cut=1_000_001), Fault(from_start=True)])
    assert bench.fetch() == BLOB
    assert bench.progress.snapshot().bytes_done == len(BLOB)


def test_the_processor_time_of_a_receive_counts_as_work(bench: Bench) -> None:
    """As decrypting takes it: a connection is not slow because this node is."""

    def decrypt(digest: Digest, position: int) -> None:
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass

    bench.source.gate = decrypt
    assert bench.fetch() == BLOB
    reads = len(BLOB) // fetch.BUFFER_BYTES
    assert bench.progress.worked_seconds >= reads * 0.01
    assert bench.progress.processor_seconds >= reads * 0.01


def test_wrong_bytes_are_dropped_and_the_source_is_not_asked_again_at_once(bench: Bench) -> None:
    bench.source.faults.append(Fault(flip=3_000_000))
    with pytest.raises(IntegrityError, match="wrong bytes"):
        bench.fetch()
    assert not bench.store.blob_path(bench.descriptor.digest).exists()
    assert list((bench.store.root / "ingest").iterdir()) == []
    with pytest.raises(IntegrityError, match="not asked again for"):
        bench.fetch()
    assert len(bench.source.opens) == 1


def test_bytes_behind_the_end_are_a_lie_about_the_size(bench: Bench) -> None:
    bench.source.faults.append(Fault(extra=b"more"))
    with pytest.raises(IntegrityError, match="more than"):
        bench.fetch()


def test_a_source_that_speaks_of_another_size_at_once_leaves_no_download_behind(bench: Bench) -> None:
    bench.source.faults.append(Fault(error=IntegrityError("it says that the blob has 5 bytes")))
    with pytest.raises(IntegrityError, match="5 bytes"):
        bench.fetch()
    assert list((bench.store.root / "ingest").iterdir()) == []


def test_what_came_before_a_source_spoke_of_another_size_is_kept(bench: Bench) -> None:
    bench.source.faults += [Fault(cut=2_000_000), Fault(error=IntegrityError("it says that the blob has 5 bytes"))]
    with pytest.raises(IntegrityError, match="5 bytes"):
        bench.fetch()
    bench.backoff().forgive()
    assert bench.fetch() == BLOB
    assert bench.source.opens[-1][1] == 2_000_000


def test_right_bytes_end_the_back_off(bench: Bench) -> None:
    bench.backoff().punish("it was wrong once")
    for record in (bench.store.root / "backoff").iterdir():
        record.write_text(record.read_text().replace('"next_try":', '"next_try":0,"was":'))
    assert bench.fetch() == BLOB
    assert list((bench.store.root / "backoff").iterdir()) == []


def test_failures_without_a_byte_between_them_end_the_attempt_and_keep_what_came(bench: Bench) -> None:
    bench.source.faults.append(Fault(cut=2_000_000))
    bench.source.faults.extend([Fault(error=Unavailable("down"))] * fetch.ATTEMPTS)
    with pytest.raises(Unavailable):
        bench.fetch()
    bench.source.faults.clear()
    bench.source.opens.clear()
    assert bench.fetch() == BLOB
    assert [offset for _, offset in bench.source.opens] == [2_000_000]


def test_progress_between_failures_starts_the_count_anew(bench: Bench) -> None:
    for _ in range(3 * fetch.ATTEMPTS):
        bench.source.faults.extend([Fault(cut=100_000), Fault(error=Unavailable("down"))])
    assert bench.fetch() == BLOB


def test_a_cancelled_fetch_keeps_what_came(bench: Bench) -> None:
    def stop(digest: object, position: int) -> None:
        if position >= 3 << 20:
            bench.cancel.set()

    bench.source.gate = stop
    with pytest.raises(Cancelled):
        bench.fetch()
    bench.cancel = Cancel()
    bench.source.gate = lambda digest, position: None
    assert bench.fetch() == BLOB
    assert bench.source.opens[1][1] >= 3 << 20


def test_a_cancelled_parent_cancels_its_children() -> None:
    parent = Cancel()
    child = Cancel(parent)
    assert not child()
    parent.set()
    assert child()
    child.sleep(60)  # returns at once


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_several_threads_fetch_the_segments_of_one_blob(bench: Bench, threads: int) -> None:
    assert bench.fetch(threads, 1 << 20) == BLOB
    assert sorted(offset >> 20 for _, offset in bench.source.opens) == [0, 1, 2, 3, 4, 5]


def test_cut_segments_go_on_where_they_stopped_and_nothing_comes_twice(bench: Bench) -> None:
    bench.source.faults.extend([Fault(cut=300_000), Fault(), Fault(cut=1), Fault(cut=700_000)])
    assert bench.fetch(3, 1 << 20) == BLOB
    assert bench.progress.fetched_bytes == len(BLOB)


def test_ranges_that_turn_out_to_be_ignored_leave_one_stream(bench: Bench) -> None:
    bench.source.faults.extend([Fault(cut=1 << 20)])
    bench.source.faults.extend([Fault(from_start=True)] * 20)
    assert bench.fetch(4, 1 << 20) == BLOB
    assert bench.progress.snapshot().bytes_done == len(BLOB)


def test_wrong_bytes_in_one_segment_stop_all_of_them(bench: Bench) -> None:
    bench.source.faults.append(Fault(flip=5))
    with pytest.raises(IntegrityError, match="wrong bytes"):
        bench.fetch(3, 1 << 20)
    assert list((bench.store.root / "ingest").iterdir()) == []


def test_a_resumed_download_asks_only_for_its_holes(bench: Bench) -> None:
    def stop(digest: object, position: int) -> None:
        if position >= (4 << 20) + 500_000:
            bench.cancel.set()

    bench.source.gate = stop
    with pytest.raises(Cancelled):
        bench.fetch(3, 1 << 20)
    had = bench.progress.fetched_bytes
    bench.cancel = Cancel()
    bench.source.gate = lambda digest, position: None
    assert bench.fetch(1, None) == BLOB
    assert bench.progress.fetched_bytes == len(BLOB)
    assert had > 0


def test_a_stream_goes_on_to_the_end_when_others_find_out_that_there_are_no_ranges(tmp_path: Path) -> None:
    content = os.urandom(10 << 20)
    bench = Bench(tmp_path, content)
    arrived, go_on = threading.Event(), threading.Event()

    def hold(digest: object, position: int) -> None:
        if position == 1 << 20:
            arrived.set()
            assert go_on.wait(60)

    bench.source.gate = hold
    ingest = bench.open()
    download = Download(ingest, bench.descriptor, bench.source, bench.backoff(), bench.counters, bench.cancel)
    whole = download.take(None)
    assert whole is not None
    first = threading.Thread(target=download.fetch, args=(whole, Line()))
    first.start()
    assert arrived.wait(60)
    assert download.share(4 << 20)
    behind = download.take(2 << 20)
    assert behind is not None
    bench.source.faults.append(Fault(from_start=True))
    assert download.fetch(behind, Line()) == 0.0
    download.finish(behind)
    assert download.take(None) is None
    go_on.set()
    first.join()
    download.finish(whole)
    download.verify()
    download.close()
    ingest.commit_blob()
    assert bench.store.blob_path(bench.descriptor.digest).read_bytes() == content
    assert [offset for _, offset in bench.source.opens] == [0, 5 << 20]
    assert bench.progress.snapshot().bytes_done == len(content)


@pytest.mark.parametrize(
    ("first", "asked"),
    [
        pytest.param(Fault(from_start=True), [0, 4 << 20], id="it comes without ranges"),
        pytest.param(Fault(), [0, 4 << 20, 4 << 20], id="it comes as a range, from a mirror"),
    ],
)
def test_the_head_is_read_on_when_others_find_out_that_there_are_no_ranges(
    first: Fault, asked: list[int], tmp_path: Path
) -> None:
    content = os.urandom(10 << 20)
    bench = Bench(tmp_path, content)
    arrived, go_on = threading.Event(), threading.Event()

    def hold(digest: object, position: int) -> None:
        if position == 1 << 20:
            arrived.set()
            assert go_on.wait(60)

    bench.source.gate = hold
    bench.source.faults.extend([first, Fault(from_start=True)])
    ingest = bench.open()
    download = Download(ingest, bench.descriptor, bench.source, bench.backoff(), bench.counters, bench.cancel)
    head, behind = download.take(4 << 20), download.take(4 << 20)
    assert head is not None
    assert behind is not None
    reader = threading.Thread(target=download.fetch, args=(head, Line()))
    reader.start()
    assert arrived.wait(60)
    assert download.fetch(behind, Line()) == 0.0
    download.finish(behind)
    go_on.set()
    reader.join()
    download.finish(head)
    download.verify()
    download.close()
    ingest.commit_blob()
    assert bench.store.blob_path(bench.descriptor.digest).read_bytes() == content
    assert [offset for _, offset in bench.source.opens] == asked
    assert bench.progress.fetched_bytes == bench.progress.snapshot().bytes_done == len(content)


def test_a_thread_is_patient_while_others_are_served() -> None:
    line, fetched = Line(), 0
    assert not line.failed(0, fetched)  # others may just have had no time
    for _ in range(5 * fetch.ATTEMPTS):
        fetched += 1
        assert line.failed(0, fetched)
        assert not line.is_hopeless
    for _ in range(fetch.ATTEMPTS - 1):
        assert not line.is_hopeless
        assert not line.failed(0, fetched)
    assert line.is_hopeless


def test_bytes_make_a_thread_patient_again() -> None:
    line, fetched = Line(), 0
    seen = []
    for brought in (*[1] * fetch.ATTEMPTS, fetch.PROGRESS_BYTES):
        line.failed(brought, fetched := fetched + brought)
        seen.append((line.failures, line.is_hopeless))
    assert seen[-2:] == [(fetch.ATTEMPTS, True), (1, False)]


def test_a_source_that_asks_to_wait_is_heard(bench: Bench) -> None:
    heard: list[float | None] = []
    ingest = bench.open()
    download = Download(
        ingest, bench.descriptor, bench.source, bench.backoff(), bench.counters, bench.cancel, complained=heard.append
    )
    bench.source.faults.append(Fault(error=Unavailable("too much", retry_after=7.0)))
    segment = download.take(None)
    assert segment is not None
    assert download.fetch(segment, Line()) >= 7.0
    assert bench.progress.snapshot().trouble == "the last request failed: too much"
    download.finish(segment)
    download.close()
    ingest.close()
    assert [wait for wait in heard if wait is not None and 7.0 <= wait < 10.0] == heard
    assert len(heard) == 1
