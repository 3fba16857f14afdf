"""A start clears what dead processes left, and touches nothing that is verified, held or under way."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from modelmount.content import debris
from modelmount.content import ingest as ingests
from modelmount.content.pulls import PullRecord
from modelmount.content.store import Store
from modelmount.oci.digest import Digest

from .downloads import OTHER_SCOPE, SCOPE, content, directory, download, feed, open_ingest

HALF_MADE = [
    "blobs/sha256/.ab.1234",
    "blobs/sha512/.ab.1234",
    "trees/.ab.1234/root/sub/file",
    "refs/.ab.1234",
    "pulls/.ab.tmp",
    "backoff/.ab.json.1234",
    "backoff/mirrors/ab.json",
    "backoff/mirrors/.ab.json.1234",
    "views/scope/.key.1234",
    "models/ab/.facts.json.1234",
    "models/ab/verdicts/.1.1234",
    "volumes/.lease.json.1234",
]


def tree(store: Store) -> set[str]:
    """Every file, without the locks that are always there once they were taken."""
    found = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}
    return found - {"locks/store", "locks/store.turnstile"}


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


@pytest.mark.parametrize("name", HALF_MADE)
def test_half_made_things_go(store: Store, name: str) -> None:
    before = tree(store)
    write(store.root / name)
    (store.root / name).chmod(0o444)
    assert debris.clear(store) >= 1
    assert tree(store) == before
    assert debris.clear(store) == 0


def test_a_link_among_the_debris_is_not_followed(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "outside/file")
    (store.root / "trees/.half").mkdir()
    (store.root / "trees/.half/link").symlink_to(tmp_path / "outside")
    (store.root / "refs/.link").symlink_to(tmp_path / "outside")
    (store.root / "trash/link").symlink_to(tmp_path / "outside")
    debris.clear(store)
    assert (tmp_path / "outside/file").exists()
    assert list((store.root / "trash").iterdir()) == []


def test_what_is_complete_stays(store: Store) -> None:
    data = content(3 << 20)
    download(store, data)
    for name in ("trees/ab/tree.json", "refs/ab", "views/s/k", "models/ab/facts.json", "volumes/ab-cd.json"):
        write(store.root / name)
    for name in ("unpacked/ab/1/index.json", "quarantine/x/file"):
        write(store.root / name)
    before = tree(store)
    assert debris.clear(store) == 0
    assert tree(store) == before


def test_trash_is_emptied_whatever_lies_in_it(store: Store) -> None:
    write(store.root / "trash/tree/root/file")
    write(store.root / "trash/file")
    (store.root / "trash/tree/root").chmod(0o555)
    debris.clear(store)
    assert list((store.root / "trash").iterdir()) == []


def test_a_tree_that_is_mounted_stays_in_the_trash(store: Store) -> None:
    for name in ("trash/aa.1234/root/file", "trash/1234/aa/root/file", "trash/1234/bb/file", "trash/cc"):
        write(store.root / name)
    debris.clear(store, sparing={"aa"})
    assert sorted(path.name for path in (store.root / "trash").iterdir()) == ["1234", "aa.1234"]
    debris.clear(store)
    assert list((store.root / "trash").iterdir()) == []


def test_records_of_dead_jobs_go_and_those_of_live_ones_stay(store: Store) -> None:
    write(store.root / "pulls/0123.json")
    write(store.root / "locks/pull-4567")
    live = PullRecord.open(store)
    assert debris.clear(store) == 2
    assert [path.stem for path in (store.root / "pulls").iterdir()] == [live.id]
    assert [path.name for path in (store.root / "locks").glob("pull-*")] == [f"pull-{live.id}"]
    live.close()


def test_locks_go_when_nobody_holds_them(store: Store) -> None:
    for name in ("pull-a", "ingest-b", "driver", "space", "target-0f"):
        write(store.root / "locks" / name)
    held = store.lock("ingest-held").acquire()
    assert debris.clear(store) == 2
    names = {path.name for path in (store.root / "locks").iterdir()}
    assert names == {"driver", "space", "store", "store.turnstile", "ingest-held", "target-0f"}
    held.release()


def test_partial_downloads_stay(store: Store) -> None:
    data = content(3 << 20)
    ingest = open_ingest(store, data)
    feed(ingest, data, 2 << 20)
    ingest.close()
    debris.clear(store)
    ingest = open_ingest(store, data)
    assert ingest.offset == 2 << 20
    ingest.close()


@pytest.mark.parametrize("form", [ingests.RAW, ingests.UNPACKED])
def test_the_rest_of_a_committed_download_goes(store: Store, tmp_path: Path, form: str) -> None:
    data = content(3 << 20)
    if form == ingests.RAW:
        download(store, data)
    else:
        write(tmp_path / "layer/index.json")
        store.commit_unpacked(tmp_path / "layer", Digest.of(data), 1, SCOPE)
    for scope in (SCOPE, OTHER_SCOPE):
        write(directory(store, data, scope, form) / "data")
    debris.clear(store)
    assert not directory(store, data, SCOPE, form).exists()
    assert directory(store, data, OTHER_SCOPE, form).exists()


def test_a_committed_download_that_somebody_still_holds_stays(store: Store) -> None:
    data = content(1 << 20)
    ingest = open_ingest(store, data)
    store.put_document(data, Digest.of(data), SCOPE)
    assert debris.clear(store) == 0
    assert ingest.directory.exists()
    ingest.discard()


def test_starts_beside_each_other_do_not_trip(store: Store) -> None:
    for n in range(200):
        write(store.root / f"trash/tree{n}/root/file")
        write(store.root / f"blobs/sha256/.{n}.half")
        write(store.root / f"locks/ingest-{n}")
    failures: list[BaseException] = []

    def clear() -> None:
        try:
            debris.clear(store)
        except BaseException as e:  # noqa: BLE001 - shown below
            failures.append(e)

    threads = [threading.Thread(target=clear) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    debris.clear(store)
    assert failures == []
    assert list((store.root / "trash").iterdir()) == []
    assert not list((store.root / "blobs/sha256").iterdir())
