"""Pull records: alive as long as their process, and together never more than the disk has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelmount.content import ingest as ingests
from modelmount.content import pulls
from modelmount.content.pulls import Claim, PullRecord
from modelmount.content.store import Store
from modelmount.errors import NoSpace
from modelmount.oci.digest import Digest
from modelmount.system import disk
from modelmount.system.lock import LockTimeout
from tests.unit.system.processes import line, mounted, start, stop

from .downloads import OTHER_SCOPE, SCOPE, content, descriptors, download, feed, open_ingest

MEGABYTE = 1 << 20


def claim(name: str, size: int, scope: str = SCOPE, form: str = ingests.RAW) -> Claim:
    digest = Digest.of(name.encode())
    return Claim(digest.hex, form, ingests.name(digest, scope, form), size)


def room(record: PullRecord, keep_free: int = 0) -> Callable[[], int]:
    return lambda: disk.free_bytes(record.store.root) - keep_free


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Store]:
    """A store with 10 MiB."""
    with mounted(tmp_path / "small", "tmpfs", "size=10m") as path:
        yield Store(path / "store")


HOLD = """
import sys
from pathlib import Path
from modelmount.content.pulls import Claim, PullRecord
from modelmount.content.store import Store
record = PullRecord.open(Store(Path(sys.argv[1])))
record.claim([Claim("ab" * 32, "raw", "ab" * 32 + "-" + "cd" * 16 + "-raw", int(sys.argv[2]))], room=lambda: 1 << 40)
print(record.id, flush=True)
sys.stdin.read()
"""


def test_a_record_lives_from_open_to_close(store: Store) -> None:
    before = descriptors()
    record = PullRecord.open(store)
    assert list(pulls.live_records(store)) == [(record.id, [])]
    record.claim([claim("a", 5)], room=room(record))
    assert list(pulls.live_records(store)) == [(record.id, [claim("a", 5)])]
    assert pulls.forget_if_dead(store, store.root / "pulls" / f"{record.id}.json") == 0
    record.close()
    record.close()
    assert list(pulls.live_records(store)) == []
    assert list((store.root / "pulls").iterdir()) == []
    assert not list((store.root / "locks").glob("pull-*"))
    assert descriptors() == before


def test_a_record_dies_with_its_process(store: Store) -> None:
    process = start(HOLD, str(store.root), "5")
    try:
        pull = line(process)
        assert [name for name, _ in pulls.live_records(store)] == [pull]
    finally:
        stop(process)
    assert list(pulls.live_records(store)) == []
    assert pulls.forget_if_dead(store, store.root / "pulls" / f"{pull}.json") == 1
    assert list((store.root / "pulls").iterdir()) == []
    assert not list((store.root / "locks").glob("pull-*"))


def test_looking_at_a_dead_record_leaves_no_lock_behind(store: Store) -> None:
    (store.root / "pulls" / "0123.json").write_bytes(b"[]")
    (store.root / "locks" / "pull-0123").write_bytes(b"")
    (store.root / "pulls" / "4567.json").write_bytes(b"torn")
    assert list(pulls.live_records(store)) == []
    assert not list((store.root / "locks").glob("pull-*"))


def test_a_new_claim_replaces_the_old_one(store: Store) -> None:
    record = PullRecord.open(store)
    record.claim([claim("a", 5), claim("b", 6)], room=room(record))
    record.claim([claim("b", 6)], room=room(record))
    assert list(pulls.live_records(store)) == [(record.id, [claim("b", 6)])]
    record.close()


def test_records_are_written_where_no_sweep_can_come(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bool] = []
    write = PullRecord._write

    def watching(record: PullRecord, claims: list[Claim]) -> None:
        with pytest.raises(LockTimeout):
            store.locks.exclusive(timeout=0)
        written.append(True)
        write(record, claims)

    monkeypatch.setattr(PullRecord, "_write", watching)
    record = PullRecord.open(store)
    record.claim([claim("a", 1)], room=room(record))
    record.close()
    assert written == [True, True]


def test_a_record_that_cannot_be_written_leaves_no_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = descriptors()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NoSpace, match="no space left to record a pull"):
        PullRecord.open(store)
    assert not list((store.root / "locks").glob("pull-*"))
    assert descriptors() == before


# -- space


@pytest.mark.mount
def test_two_pulls_that_do_not_fit_together_do_not_both_start(small: Store) -> None:
    first, second = PullRecord.open(small), PullRecord.open(small)
    first.claim([claim("a", 6 * MEGABYTE)], room=room(first))
    with pytest.raises(NoSpace, match=r"6\.3 MB more are needed on .*other pulls hold 6\.3 MB") as caught:
        second.claim([claim("b", 6 * MEGABYTE)], room=room(second))
    assert caught.value.short_bytes == 12 * MEGABYTE - disk.free_bytes(small.root)
    assert dict(pulls.live_records(small))[second.id] == []
    first.close()
    second.claim([claim("b", 6 * MEGABYTE)], room=room(second))
    second.close()


@pytest.mark.mount
def test_what_must_stay_free_is_nobodys(small: Store) -> None:
    record = PullRecord.open(small)
    with pytest.raises(NoSpace, match=r"2\.1 MB are free for it"):
        record.claim([claim("a", 3 * MEGABYTE)], room=room(record, 8 * MEGABYTE))
    record.claim([claim("a", MEGABYTE)], room=room(record, 8 * MEGABYTE))
    record.close()


@pytest.mark.mount
def test_the_share_of_a_dead_pull_is_free_again(small: Store) -> None:
    process = start(HOLD, str(small.root), str(6 * MEGABYTE))
    record = PullRecord.open(small)
    try:
        line(process)
        with pytest.raises(NoSpace):
            record.claim([claim("b", 6 * MEGABYTE)], room=room(record))
    finally:
        stop(process)
    record.claim([claim("b", 6 * MEGABYTE)], room=room(record))
    record.close()


@pytest.mark.mount
def test_pulls_that_share_a_download_need_its_space_once(small: Store) -> None:
    first, second = PullRecord.open(small), PullRecord.open(small)
    first.claim([claim("a", 6 * MEGABYTE)], room=room(first))
    second.claim([claim("a", 6 * MEGABYTE), claim("b", MEGABYTE)], room=room(second))
    third = PullRecord.open(small)
    with pytest.raises(NoSpace):
        third.claim([claim("a", 6 * MEGABYTE, OTHER_SCOPE)], room=room(third, 0))
    third.claim([claim("c", 2 * MEGABYTE)], room=room(third, 0))
    for record in (first, second, third):
        record.close()


@pytest.mark.mount
def test_bytes_that_are_on_the_disk_are_not_needed_again(small: Store) -> None:
    data = content(5 * MEGABYTE)
    digest = Digest.of(data)
    whole = Claim(digest.hex, ingests.RAW, ingests.name(digest, SCOPE, ingests.RAW), len(data))
    first, second = PullRecord.open(small), PullRecord.open(small)
    first.claim([whole], room=room(first))
    ingest = open_ingest(small, data)
    feed(ingest, data, 4 * MEGABYTE)
    second.claim([claim("b", 3 * MEGABYTE)], room=room(second))
    feed(ingest, data)
    ingest.commit_blob()
    second.claim([claim("b", 4 * MEGABYTE)], room=room(second))
    with pytest.raises(NoSpace):
        second.claim([claim("b", 6 * MEGABYTE)], room=room(second))
    first.close()
    second.close()


@pytest.mark.mount
def test_a_job_whose_parts_are_all_there_holds_them_on_a_full_disk(small: Store) -> None:
    data = content(5 * MEGABYTE)
    digest = Digest.of(data)
    download(small, data)
    (small.root.parent / "filler").write_bytes(bytes(disk.free_bytes(small.root) - (64 << 10)))
    record = PullRecord.open(small)
    record.claim([Claim(digest.hex, ingests.RAW, ingests.name(digest, SCOPE, ingests.RAW), len(data))], room=lambda: -1)
    assert dict(pulls.live_records(small))[record.id][0].hex == digest.hex
    record.close()


def test_a_record_that_cannot_be_removed_is_dead_all_the_same(store: Store) -> None:
    record = PullRecord.open(store)
    path = store.root / "pulls" / f"{record.id}.json"
    path.unlink()
    path.mkdir()  # nothing that unlink can remove
    record.close()
    path.rmdir()
    assert list(pulls.live_records(store)) == []
    assert not list((store.root / "locks").glob(f"pull-{record.id}"))
