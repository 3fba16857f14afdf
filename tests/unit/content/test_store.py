"""The store: a name that exists is complete, and present without a scope record is not available to that scope."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from modelmount.content import versions
from modelmount.content.store import ROOMS, Store
from modelmount.errors import BadArtifact, Internal, NoSpace, Precondition
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import MAX_DOCUMENT_BYTES
from modelmount.system import atomic

from .downloads import OTHER_SCOPE, SCOPE, content, descriptors, recorded

DATA = b'{"schemaVersion": 2}'
DIGEST = Digest.of(DATA)


def layer(path: Path, members: int = 1) -> Path:
    """A whole unpacked layer."""
    (path / "files").mkdir(parents=True)
    for n in range(members):
        (path / "files" / str(n)).write_bytes(b"member %d" % n)
    (path / "index.json").write_bytes(b"[]")
    return path


# -- the root


def test_a_new_store_has_its_rooms_for_root_only(tmp_path: Path) -> None:
    root = tmp_path / "a/b/store"
    Store(root)
    Store(root)
    assert (root / "version").read_text() == f"{versions.VERSION}\n"
    assert {mode(root), *(mode(root / room) for room in ROOMS)} == {0o700}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_an_open_root_is_closed(tmp_path: Path) -> None:
    Store(tmp_path / "store").root.chmod(0o755)
    assert mode(Store(tmp_path / "store").root) == 0o700


def test_rooms_are_durable_before_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch, tmp_path) as calls:
        Store(tmp_path / "store")
        made = {call for call in calls if call.endswith("/")}
        calls.clear()
        Store(tmp_path / "store")
        assert calls == []
    assert made == {"fsync store/blobs/", "fsync store/", "fsync ./"}


@pytest.mark.parametrize("found", [b"3\n", b"99\n", b"0\n", b"-1\n", b"", "\u0662\n".encode(), b"\xff\xfe" * 1000])
def test_a_layout_of_another_version_is_left_alone(tmp_path: Path, found: bytes) -> None:
    root = tmp_path / "store"
    root.mkdir(mode=0o750)
    (root / "version").write_bytes(found)
    with pytest.raises(Precondition, match="give it another root"):
        Store(root)
    assert (root / "version").read_bytes() == found
    assert os.listdir(root) == ["version"]
    assert mode(root) == 0o750


def test_a_store_is_made_in_an_empty_file_system(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found/#12").write_text("")
    assert Store(tmp_path).root == tmp_path


def test_a_store_that_a_crash_left_half_made_is_finished(tmp_path: Path) -> None:
    for room in ROOMS[:5]:
        (tmp_path / room).mkdir(parents=True)
    (tmp_path / ".version.0123456789abcdef").write_text("1\n")
    Store(tmp_path)
    assert (tmp_path / "version").exists()


@pytest.mark.parametrize("name", ["notes.txt", "models/llama/.git/config", "blobs/sha256/abc"])
def test_a_directory_with_somebody_s_files_is_left_alone(tmp_path: Path, name: str) -> None:
    root = tmp_path / "mine"
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text("precious")
    root.chmod(0o755)
    with pytest.raises(Precondition, match="isn't a store, and isn't empty"):
        Store(root)
    assert mode(root) == 0o755
    assert [p for p in root.rglob("*") if p.is_file()] == [root / name]


def test_a_root_that_cannot_be_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Precondition, match="choose another directory"):
        Store(tmp_path / "file")


# -- presence and scopes


def test_what_one_scope_has_is_not_available_to_another(store: Store) -> None:
    assert not store.has_blob(DIGEST, SCOPE)
    store.put_document(DATA, DIGEST, SCOPE)
    assert store.has_blob(DIGEST, SCOPE)
    assert not store.has_blob(DIGEST, OTHER_SCOPE)
    store.admit(DIGEST, OTHER_SCOPE)
    assert store.has_blob(DIGEST, OTHER_SCOPE)


def test_a_scope_record_is_no_blob(store: Store) -> None:
    store.admit(DIGEST, SCOPE)
    assert store.has_scope(DIGEST, SCOPE)
    assert not store.has_blob(DIGEST, SCOPE)
    assert not store.holds(DIGEST.hex, SCOPE, unpacked=False)


def test_a_scope_record_is_made_durable_also_where_somebody_left_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with recorded(monkeypatch, store.root) as calls:
            store.admit(DIGEST, SCOPE)
        assert calls == [f"fsync scopes/{DIGEST.hex}/", "fsync scopes/"]


def test_the_newest_unpacked_form_counts_among_the_versions_asked_for(store: Store, tmp_path: Path) -> None:
    assert store.unpacked_rules(DIGEST, SCOPE) is None
    for rules in (9, 10, 1001):
        store.commit_unpacked(layer(tmp_path / "l"), DIGEST, rules, SCOPE)
    (store.root / "unpacked" / DIGEST.hex / "11").mkdir()
    layer(store.root / "unpacked" / DIGEST.hex / ".12.half")
    assert store.unpacked_rules(DIGEST, SCOPE) == 1001
    assert store.unpacked_rules(DIGEST, SCOPE, range(1, 1000)) == 10
    assert store.unpacked_rules(DIGEST, SCOPE, range(50, 1000)) is None
    assert store.unpacked_rules(DIGEST, OTHER_SCOPE) is None
    assert store.holds(DIGEST.hex, SCOPE, unpacked=True)
    assert not store.holds(DIGEST.hex, OTHER_SCOPE, unpacked=True)
    assert not store.holds(DIGEST.hex, SCOPE, unpacked=False)


def test_both_algorithms_have_their_place(store: Store) -> None:
    hasher = Digest("sha512", "0" * 128).hasher()
    hasher.update(DATA)
    digest = Digest("sha512", hasher.hexdigest())
    store.put_document(DATA, digest, SCOPE)
    assert store.blob_path(digest) == store.root / "blobs/sha512" / digest.hex
    assert store.holds(digest.hex, SCOPE, unpacked=False)
    assert store.read_document(digest) == DATA


# -- documents


def test_a_document_is_stored_read_only_and_read_back(store: Store) -> None:
    store.put_document(DATA, DIGEST, SCOPE)
    assert store.read_document(DIGEST) == DATA
    assert mode(store.blob_path(DIGEST)) == 0o444
    store.put_document(DATA, DIGEST, OTHER_SCOPE)
    assert store.has_blob(DIGEST, OTHER_SCOPE)
    assert [path.name for path in store.blob_path(DIGEST).parent.iterdir()] == [DIGEST.hex]


def test_a_document_is_written_in_the_order_of_any_blob(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch, store.root) as calls:
        store.put_document(DATA, DIGEST, SCOPE)
    assert calls[0].startswith(f"fsync blobs/sha256/.{DIGEST.hex}.")
    assert calls[0].endswith(" 444")
    assert calls[1:] == [
        f"fsync scopes/{DIGEST.hex}/",
        "fsync scopes/",
        f"rename blobs/sha256/{DIGEST.hex}",
        "fsync blobs/sha256/",
        "fsync blobs/sha256/",
    ]


def test_a_document_with_other_bytes_is_refused(store: Store) -> None:
    with pytest.raises(Internal, match="refusing to store"):
        store.put_document(b"other", DIGEST, SCOPE)
    assert not store.has_scope(DIGEST, SCOPE)


@pytest.mark.parametrize("point", ["content.blob.before_scope", "content.blob.before_rename"])
def test_a_full_disk_leaves_no_document_and_nothing_half_made(store: Store, point: str) -> None:
    with atomic.armed(f"{point}=error(ENOSPC)"), pytest.raises(NoSpace, match=f"store {DIGEST}"):
        store.put_document(DATA, DIGEST, SCOPE)
    assert list(store.blob_path(DIGEST).parent.iterdir()) == []
    store.put_document(DATA, DIGEST, SCOPE)
    assert store.read_document(DIGEST) == DATA


def test_a_digest_of_something_large_is_no_document(store: Store) -> None:
    data = content(MAX_DOCUMENT_BYTES + 1)
    store.put_document(data, Digest.of(data), SCOPE)
    with pytest.raises(BadArtifact, match="neither a manifest nor a config"):
        store.read_document(Digest.of(data))
    store.put_document(data[:-1], Digest.of(data[:-1]), SCOPE)
    assert len(store.read_document(Digest.of(data[:-1]))) == MAX_DOCUMENT_BYTES


@pytest.mark.parametrize("found", [b"", DATA[:-1], DATA + b" ", b"x" * len(DATA)])
def test_a_damaged_document_is_never_handed_out(store: Store, found: bytes) -> None:
    store.put_document(DATA, DIGEST, SCOPE)
    store.blob_path(DIGEST).unlink()
    store.blob_path(DIGEST).write_bytes(found)
    with pytest.raises(Internal, match="is damaged in the store"):
        store.read_document(DIGEST)


def test_a_missing_document_says_what_to_run(store: Store) -> None:
    with pytest.raises(Internal, match="modelmount doctor"):
        store.read_document(DIGEST)


# -- commits


def test_the_first_of_two_equal_blobs_stays(store: Store, tmp_path: Path) -> None:
    store.put_document(DATA, DIGEST, SCOPE)
    inode = store.blob_path(DIGEST).stat().st_ino
    (tmp_path / "second").write_bytes(DATA)
    store.commit_blob(tmp_path / "second", DIGEST, OTHER_SCOPE)
    assert store.blob_path(DIGEST).stat().st_ino == inode
    assert not (tmp_path / "second").exists()
    assert store.has_blob(DIGEST, OTHER_SCOPE)


def test_the_first_of_two_equal_layers_stays(store: Store, tmp_path: Path) -> None:
    store.commit_unpacked(layer(tmp_path / "first"), DIGEST, 1, SCOPE)
    inode = store.unpacked_path(DIGEST, 1).stat().st_ino
    store.commit_unpacked(layer(tmp_path / "second"), DIGEST, 1, OTHER_SCOPE)
    assert store.unpacked_path(DIGEST, 1).stat().st_ino == inode
    assert not (tmp_path / "second").exists()
    assert store.unpacked_rules(DIGEST, OTHER_SCOPE) == 1


def test_a_layer_has_its_name_on_the_disk_before_the_commit_returns(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = layer(store.root / "ingest" / "x" / "layer")
    with recorded(monkeypatch, store.root) as calls:
        store.commit_unpacked(whole, DIGEST, 1, SCOPE)
    assert calls == [
        f"fsync scopes/{DIGEST.hex}/",
        "fsync scopes/",
        f"rename unpacked/{DIGEST.hex}/1",
        f"fsync unpacked/{DIGEST.hex}/",
        "fsync unpacked/",
        "fsync ingest/x/",
    ]


def test_many_commits_of_one_blob_at_once_all_succeed(store: Store) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(8)

    def put(n: int) -> None:
        try:
            barrier.wait()
            store.put_document(DATA, DIGEST, f"{n:032x}")
        except BaseException as e:  # noqa: BLE001 - shown below
            failures.append(e)

    before = descriptors()
    threads = [threading.Thread(target=put, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(store.has_blob(DIGEST, f"{n:032x}") for n in range(8))
    assert os.listdir(store.blob_path(DIGEST).parent) == [DIGEST.hex]
    assert descriptors() == before


# -- groups


GROUP = {Digest.of(data): data for data in (content(500 + n, f"small {n}") for n in range(30))}


def test_a_group_costs_one_sync_and_one_for_the_names(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch, store.root) as happened:
        store.put_group(GROUP, SCOPE)
    assert [line for line in happened if "sync" in line] == ["syncfs", "fsync blobs/sha256/"]
    assert all(store.read_document(digest) == data for digest, data in GROUP.items())
    assert {store.blob_path(digest).stat().st_mode & 0o777 for digest in GROUP} == {0o444}


def test_a_group_leaves_blobs_alone_that_are_there_and_admits_the_scope(store: Store) -> None:
    first = next(iter(GROUP))
    store.put_document(GROUP[first], first, OTHER_SCOPE)
    inode = store.blob_path(first).stat().st_ino
    store.put_group(GROUP, SCOPE)
    assert store.blob_path(first).stat().st_ino == inode
    assert all(store.has_blob(digest, SCOPE) for digest in GROUP)
    assert list((store.root / "blobs/sha256").glob(".*")) == []


def test_the_records_of_a_group_are_names_of_one_file_whatever_was_there(store: Store) -> None:
    first, *rest = GROUP
    store.put_document(GROUP[first], first, SCOPE)
    store.put_group(GROUP, SCOPE)
    made = [(store.root / "scopes" / digest.hex / SCOPE).stat() for digest in rest]
    assert {(each.st_ino, each.st_nlink, each.st_size) for each in made} == {(made[0].st_ino, len(rest), 0)}
    assert (store.root / "scopes" / first.hex / SCOPE).stat().st_nlink == 1
    (store.root / "scopes" / rest[0].hex / SCOPE).unlink()
    assert [store.has_scope(digest, SCOPE) for digest in GROUP] == [True, False, *[True] * (len(rest) - 1)]


def test_wrong_bytes_in_a_group_store_nothing_of_it(store: Store) -> None:
    with pytest.raises(Internal, match="refusing to store"):
        store.put_group({**GROUP, Digest.of(b"other"): b"wrong"}, SCOPE)
    assert list((store.root / "blobs/sha256").iterdir()) == []


def test_a_full_disk_in_a_group_leaves_nothing_half_made(store: Store) -> None:
    with atomic.armed("content.group.before_sync=error(ENOSPC)"), pytest.raises(NoSpace):
        store.put_group(GROUP, SCOPE)
    assert list((store.root / "blobs/sha256").iterdir()) == []


def test_on_an_old_kernel_each_of_a_group_is_synced_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "syncs_groups", lambda: False)
    store.put_group(GROUP, SCOPE)
    assert all(store.read_document(digest) == data for digest, data in GROUP.items())
