"""Ingests: what the journal proves is kept through anything, and nothing else is believed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmount.content import checkpoints
from modelmount.content import ingest as ingests
from modelmount.content import writer as writers
from modelmount.content.ingest import Ingest
from modelmount.content.ranges import Range
from modelmount.content.store import Store
from modelmount.errors import Cancelled, Internal, NoSpace
from modelmount.oci.digest import Digest
from modelmount.system import atomic, disk
from modelmount.system.lock import LockTimeout
from tests.unit.system.processes import mounted

from .downloads import (
    OTHER_SCOPE,
    PIECE,
    SCOPE,
    assert_right,
    content,
    descriptors,
    died,
    directory,
    download,
    feed,
    open_ingest,
    read,
    recorded,
    resumed,
)

DATA = content(4 * PIECE + 12_345)
DIGEST = Digest.of(DATA)


def reopened(store: Store, data: bytes = DATA) -> int:
    """Where the next attempt starts, with nothing behind that; all bytes below are right."""
    missing = resumed(store, data)
    assert len(missing) <= 1
    return missing[0][0] if missing else len(data)


# -- the whole life


def test_a_download_becomes_a_blob_and_leaves_nothing_else(store: Store) -> None:
    before = descriptors()
    download(store, DATA)
    assert store.has_blob(DIGEST, SCOPE)
    assert store.blob_path(DIGEST).read_bytes() == DATA
    assert store.blob_path(DIGEST).stat().st_mode & 0o7777 == 0o444
    assert list((store.root / "ingest").iterdir()) == []
    assert not list((store.root / "locks").glob("ingest-*"))
    assert descriptors() == before


def test_an_empty_blob_is_a_blob(store: Store) -> None:
    download(store, b"")
    assert store.blob_path(Digest.of(b"")).read_bytes() == b""


def test_a_commit_is_durable_step_by_step(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA)
    name = directory(store, DATA).relative_to(store.root)
    with recorded(monkeypatch, store.root) as calls:
        ingest.commit_blob()
    assert calls == [
        f"fsync {name}/data 444",
        f"fsync scopes/{DIGEST.hex}/",
        "fsync scopes/",
        f"rename blobs/sha256/{DIGEST.hex}",
        "fsync blobs/sha256/",
        f"fsync {name}/",
    ]


@pytest.mark.parametrize(("members", "resumed"), [(1, False), (40, False), (40, True)])
def test_a_layer_is_durable_before_it_has_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch, members: int, resumed: bool
) -> None:
    ingest = open_ingest(store, DATA, form=ingests.UNPACKED)
    if resumed:
        feed(ingest, DATA, PIECE)
        ingest.close()
        ingest = open_ingest(store, DATA, form=ingests.UNPACKED)
    layer = ingest.directory / "layer"
    (layer / "files").mkdir(parents=True)
    for n in range(members):
        (layer / "files" / str(n)).write_bytes(b"x")
    (layer / "index.json").write_bytes(b"[]")
    with recorded(monkeypatch, store.root) as calls:
        ingest.commit_unpacked(layer, 1)
    before = [call.rpartition("/layer")[2] for call in calls[: calls.index(f"rename unpacked/{DIGEST.hex}/1")]]
    files = {call.split(" ")[0] for call in before if call.startswith("/files/") and call != "/files/"}
    if members <= ingests.GROUP_FILES:
        assert (files, before.count("syncfs")) == ({f"/files/{n}" for n in range(members)}, 0)
    else:
        assert before[0] == "syncfs"
        assert len(files) == (members if resumed else 0)  # an earlier attempt's errors are told file by file only
    assert before.index("/files/") < before.index("/")
    assert store.unpacked_rules(DIGEST, SCOPE) == 1
    assert not ingest.directory.exists()


def test_what_is_not_complete_is_not_committed(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, PIECE)
    with pytest.raises(Internal, match=f"refusing to commit {PIECE} of the {len(DATA)} bytes"):
        ingest.commit_blob()
    ingest.close()
    assert reopened(store) == PIECE


def test_one_works_on_it_and_the_next_gets_its_turn(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    with pytest.raises(LockTimeout):
        open_ingest(store, DATA)
    open_ingest(store, DATA, OTHER_SCOPE).close()
    open_ingest(store, DATA, form=ingests.UNPACKED).close()
    ingest.close()
    ingest.close()
    open_ingest(store, DATA).close()


def test_an_ingest_that_ended_touches_nothing_of_the_next(store: Store) -> None:
    first = open_ingest(store, DATA)
    first.discard()
    second = open_ingest(store, DATA)
    feed(second, DATA, PIECE)
    first.discard()
    first.close()
    with pytest.raises(LockTimeout):
        open_ingest(store, DATA)
    second.close()
    assert reopened(store) == PIECE


def test_two_scopes_that_commit_one_blob_at_once_share_it(store: Store) -> None:
    scopes = [f"{n:032x}" for n in range(4)]
    opened = [open_ingest(store, DATA, scope) for scope in scopes]
    for ingest in opened:
        feed(ingest, DATA)
    threads = [threading.Thread(target=ingest.commit_blob) for ingest in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.blob_path(DIGEST).read_bytes() == DATA
    assert all(store.has_blob(DIGEST, scope) for scope in scopes)
    assert list((store.root / "ingest").iterdir()) == []


# -- resuming


def test_a_closed_download_goes_on_at_the_byte(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, 2 * PIECE + 777)
    ingest.close()
    ingest = open_ingest(store, DATA)
    assert ingest.offset == 2 * PIECE + 777
    feed(ingest, DATA)
    ingest.commit_blob()
    assert store.blob_path(DIGEST).read_bytes() == DATA


def test_a_killed_one_goes_on_behind_the_last_finished_piece(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, 2 * PIECE + 777, killed=True)
    died(ingest)
    assert reopened(store) == 2 * PIECE


def damage(at: int, new: bytes) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at if at >= 0 else at + path.stat().st_size)
            file.write(new)

    return act


def cut(to: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, to if to >= 0 else to + path.stat().st_size)


END = (4 * PIECE, len(DATA))
"""What nobody has written when the damage is done."""

DAMAGES = [
    ("torn data", "data", damage(PIECE + 5, b"\0"), [(PIECE, 2 * PIECE), END]),
    ("torn first piece", "data", damage(0, b"\xff"), [(0, PIECE), END]),
    ("two torn pieces", "data", damage(2 * PIECE - 1, b"\0\0"), [(PIECE, 3 * PIECE), END]),
    ("a zero tail", "data", damage(3 * PIECE, bytes(PIECE)), [(3 * PIECE, len(DATA))]),
    ("a hole", "data", damage(PIECE, bytes(PIECE)), [(PIECE, 2 * PIECE), END]),
    ("short data", "data", cut(3 * PIECE - 1), [(2 * PIECE, len(DATA))]),
    ("no data", "data", cut(0), [(0, len(DATA))]),
    ("data gone", "data", Path.unlink, [(0, len(DATA))]),
    ("a longer file", "data", damage(-1, DATA[4 * PIECE - 1 : 4 * PIECE] + b"more"), [END]),
    ("a torn last line", "journal", cut(-3), [(3 * PIECE, len(DATA))]),
    ("a journal of zeros", "journal", damage(0, bytes(400)), [(0, len(DATA))]),
    ("zeros behind the journal", "journal", lambda path: path.write_bytes(path.read_bytes() + bytes(512)), [END]),
    ("a flipped line", "journal", damage(-20, b"f"), [(3 * PIECE, len(DATA))]),
    ("garbage in the journal", "journal", damage(0, b"\xff\n \n1 2\n1 2 3 4\n"), [(0, PIECE), END]),
    ("no journal", "journal", Path.unlink, [(0, len(DATA))]),
]


@pytest.mark.parametrize(("file", "act", "missing"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_only_what_the_journal_proves_is_believed(
    store: Store, file: str, act: Callable[[Path], None], missing: list[Range]
) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, 4 * PIECE, killed=True)
    died(ingest)
    act(directory(store, DATA) / file)
    ingest = open_ingest(store, DATA)
    assert list(ingest.missing) == missing
    assert ingest.offset == missing[0][0]
    assert ingest.path.stat().st_size == missing[-1][0]
    assert_right(ingest, DATA)
    feed(ingest, DATA, killed=True)
    died(ingest)
    assert reopened(store) == 4 * PIECE
    download(store, DATA)
    assert store.blob_path(DIGEST).read_bytes() == DATA


def test_lines_about_bytes_that_were_lost_give_way_to_newer_ones(store: Store) -> None:
    for _ in range(3):
        ingest = open_ingest(store, DATA)
        feed(ingest, DATA, 3 * PIECE + 99)
        ingest.close()
        damage(PIECE + 1, b"\0")(directory(store, DATA) / "data")
    assert resumed(store, DATA) == ((PIECE, 2 * PIECE), (3 * PIECE + 99, len(DATA)))


def test_lines_about_wrong_bytes_give_way_to_those_about_the_right_ones(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA[:PIECE] + content(PIECE, "wrong"))
    died(ingest)
    cut(PIECE)(directory(store, DATA) / "data")
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, 3 * PIECE, killed=True)
    died(ingest)
    assert reopened(store) == 3 * PIECE


def test_a_smaller_blob_of_the_same_name_believes_nothing_beyond_its_size(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA)
    ingest.close()
    held = store.lock("ingest-" + ingests.name(DIGEST, SCOPE, ingests.RAW)).acquire(timeout=0)
    smaller = Ingest.open(store, DIGEST, PIECE + 5, SCOPE, ingests.RAW, held)
    assert smaller.offset == PIECE
    smaller.close()


def test_cancelling_the_check_of_the_old_bytes_keeps_them(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA)
    ingest.close()
    held = store.lock("ingest-" + ingests.name(DIGEST, SCOPE, ingests.RAW)).acquire(timeout=0)
    answers = iter([False, False, True])
    with pytest.raises(Cancelled, match="its bytes are kept"):
        Ingest.open(store, DIGEST, len(DATA), SCOPE, ingests.RAW, held, cancelled=lambda: next(answers))
    assert reopened(store) == len(DATA)


@given(
    ends=st.lists(st.integers(0, len(DATA)), min_size=1, max_size=4),
    clean=st.lists(st.booleans(), min_size=4, max_size=4),
    hits=st.lists(
        st.tuples(st.sampled_from(["data", "journal"]), st.integers(0, len(DATA)), st.binary(min_size=1, max_size=600)),
        max_size=4,
    ),
)
@settings(max_examples=25)
def test_whatever_happens_to_the_files_nothing_wrong_is_believed(
    ends: list[int],
    clean: list[bool],
    hits: list[tuple[str, int, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    for end, closed in zip(ends, clean, strict=False):
        ingest = open_ingest(store, DATA)
        assert_right(ingest, DATA)
        feed(ingest, DATA, end, killed=not closed)
        ingest.close() if closed else died(ingest)
        if hits:
            file, at, new = hits.pop()
            path = directory(store, DATA) / file
            damage(at % (path.stat().st_size + 1), new)(path)
    resumed(store, DATA)
    download(store, DATA)
    assert store.blob_path(DIGEST).read_bytes() == DATA


# -- checkpoints


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(checkpoints, "time", clock)
    return clock


def syncs(calls: list[str]) -> list[str]:
    return [call.partition("/")[2].partition("/")[2] for call in calls]


def test_checkpoints_come_by_bytes(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", 2 * PIECE)
    ingest = open_ingest(store, DATA)
    with recorded(monkeypatch, store.root) as calls:
        feed(ingest, DATA, 2 * PIECE - 1)
        assert calls == []
        feed(ingest, DATA, 2 * PIECE)
        assert syncs(calls) == ["data 600", "journal 600", "", ""]
        calls.clear()
        feed(ingest, DATA)
        assert syncs(calls) == ["data 600", "journal 600"]
    ingest.close()


def test_checkpoints_come_by_time_on_a_slow_line(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = open_ingest(store, DATA)
    with recorded(monkeypatch, store.root) as calls:
        feed(ingest, DATA, 1000, killed=True)
        assert calls == []
        clock.now += checkpoints.CHECKPOINT_SECONDS
        feed(ingest, DATA, 2000, killed=True)
        assert syncs(calls)[:2] == ["data 600", "journal 600"]
        calls.clear()
        feed(ingest, DATA, 3000, killed=True)
        assert calls == []
    died(ingest)
    assert reopened(store) == 2000


def test_a_flush_makes_the_piece_in_hand_count(store: Store) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, 1234, killed=True)
    ingest.flush()
    died(ingest)
    assert reopened(store) == 1234


def failing(*_: object) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("end", [Ingest.close, died], ids=["closed", "killed"])
@pytest.mark.parametrize("call", ["fdatasync", "fsync", "sync_range"])
def test_after_a_failed_sync_nothing_of_it_is_believed_again(
    store: Store, call: str, end: Callable[[Ingest], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, len(DATA) - 1)
    writer = ingest.writer(len(DATA) - 1)
    other = ingest.writer(0)
    with monkeypatch.context() as patch:
        patch.setattr(*((disk, call) if call == "sync_range" else (os, call)), failing)
        patch.setattr(writers, "WRITEBACK_BYTES", 1 if call == "sync_range" else PIECE)
        with pytest.raises(Internal, match="Input/output error"):
            writer.append(memoryview(DATA)[-1:])
            if call == "fdatasync":
                ingest.flush()
            else:
                ingest.commit_blob()
    # The kernel told its error once: from here on every sync would succeed.
    for again in (ingest.flush, ingest.commit_blob, lambda: other.append(memoryview(DATA)[:1])):
        with pytest.raises(Internal, match="Input/output error"):
            again()
    with pytest.raises(Internal, match="Input/output error"):
        ingest.commit_unpacked(ingest.directory / "layer", 1)
    assert read(ingest, 10) == DATA[:10]  # whoever hashes behind the writer may still read
    end(ingest)
    assert directory(store, DATA).exists() == (end is died)
    assert not store.has_blob(DIGEST, SCOPE)
    assert reopened(store) == 0


def test_an_ingest_on_a_disk_that_went_read_only_still_lets_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, PIECE)
    before = descriptors()

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        patch.setattr(os, "unlink", read_only)
        patch.setattr(os, "rmdir", read_only)
        with pytest.raises(Internal):
            ingest.flush()
        ingest.close()
    assert descriptors() == before - 3
    open_ingest(store, DATA).close()


# -- full disks


@pytest.mark.mount
def test_a_full_disk_keeps_what_was_received(tmp_path: Path) -> None:
    data = content(6 * PIECE)
    with mounted(tmp_path / "small", "tmpfs", f"size={6 * PIECE}") as small:
        store = Store(small / "store")
        (small / "filler").write_bytes(bytes(2 * PIECE))
        ingest = open_ingest(store, data)
        before = descriptors()
        with pytest.raises(NoSpace, match="no space left to write"):
            feed(ingest, data)
        ingest.close()
        assert descriptors() == before - 3
        kept = reopened(store, data)
        assert kept >= 3 * PIECE
        (small / "filler").unlink()
        (small / "another").write_bytes(bytes(PIECE // 2))
        with pytest.raises(NoSpace):
            download(store, data)
        (small / "another").unlink()
        assert reopened(store, data) >= kept


def test_a_journal_that_cannot_grow_loses_its_last_lines_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA, PIECE)
    write = os.write

    def nearly_full(fd: int, line: memoryview) -> int:
        if len(line) > 7:
            return write(fd, line[:7])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", nearly_full)
        with pytest.raises(NoSpace, match="write the journal"):
            feed(ingest, DATA)
        ingest.close()
    ingest = open_ingest(store, DATA)
    assert ingest.offset == PIECE
    feed(ingest, DATA, 3 * PIECE, killed=True)
    died(ingest)
    assert reopened(store) == 3 * PIECE


@pytest.mark.parametrize("point", ["content.blob.before_scope", "content.blob.before_rename"])
def test_a_full_disk_at_the_commit_keeps_the_verified_bytes(store: Store, point: str) -> None:
    ingest = open_ingest(store, DATA)
    feed(ingest, DATA)
    with atomic.armed(f"{point}=error(ENOSPC)"), pytest.raises(NoSpace, match=f"commit {DIGEST}"):
        ingest.commit_blob()
    ingest.close()
    ingest = open_ingest(store, DATA)
    assert ingest.offset == len(DATA)
    ingest.commit_blob()
    assert store.blob_path(DIGEST).read_bytes() == DATA


def test_a_full_disk_at_the_commit_of_a_layer_keeps_the_archive(store: Store) -> None:
    ingest = open_ingest(store, DATA, form=ingests.UNPACKED)
    feed(ingest, DATA)
    (ingest.directory / "layer/files").mkdir(parents=True)
    with (
        atomic.armed("content.unpacked.before_rename=error(ENOSPC)"),
        pytest.raises(NoSpace, match=f"commit the unpacked {DIGEST}"),
    ):
        ingest.commit_unpacked(ingest.directory / "layer", 1)
    ingest.close()
    ingest = open_ingest(store, DATA, form=ingests.UNPACKED)
    assert ingest.offset == len(DATA)
    ingest.discard()


# -- what lies in the way


@pytest.mark.parametrize("name", ["data", "journal"])
def test_a_link_in_the_way_is_not_followed_and_the_lock_is_free_again(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_bytes(b"untouched")
    directory(store, DATA).mkdir()
    (directory(store, DATA) / name).symlink_to(tmp_path / "victim")
    before = descriptors()
    for _ in range(2):
        with pytest.raises(Internal, match="cannot resume"):
            open_ingest(store, DATA)
    assert (tmp_path / "victim").read_bytes() == b"untouched"
    assert descriptors() == before


def test_a_finished_download_is_told_by_its_name(store: Store) -> None:
    name = ingests.name(DIGEST, SCOPE, ingests.RAW)
    assert not ingests.finished(store, name)
    download(store, DATA)
    assert ingests.finished(store, name)
    assert not ingests.finished(store, ingests.name(DIGEST, OTHER_SCOPE, ingests.RAW))
    assert not ingests.finished(store, ingests.name(DIGEST, SCOPE, ingests.UNPACKED))
    assert not any(
        ingests.finished(store, other) for other in ("", "x", f"{DIGEST.hex}-{SCOPE}", f"{name}-x", "..-..-raw")
    )
