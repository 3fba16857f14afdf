"""Trees: hard links of verified files, complete when they have their name, shared by equal layouts."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from modelmount.content.store import Store
from modelmount.errors import Internal, NoSpace, Precondition
from modelmount.formats.base import File, Placement
from modelmount.oci.digest import Digest
from modelmount.snapshots import tree
from modelmount.system import atomic
from tests.unit.system.processes import mounted, start, stop

SCOPE, OTHER_SCOPE = "ab" * 16, "cd" * 16
MANIFEST, OTHER_MANIFEST = Digest.of(b"manifest"), Digest.of(b"another")
CONFIG, WEIGHTS = b"{}", b"weights" * 1000
SELECTION = "all"


def put(store: Store, data: bytes) -> Digest:
    digest = Digest.of(data)
    store.put_document(data, digest, SCOPE)
    return digest


@pytest.fixture
def placement(store: Store) -> Placement:
    config, weights = put(store, CONFIG), put(store, WEIGHTS)
    files = (
        File("config.json", config.hex, len(CONFIG)),
        File("sub/deep/copy.json", config.hex, len(CONFIG)),
        File("sub/weights", weights.hex, len(WEIGHTS)),
    )
    return Placement(files, ("empty", "sub", "sub/deep"))


def build(store: Store, placement: Placement, scope: str = SCOPE, manifest: Digest = MANIFEST) -> tree.Tree:
    with store.locks.shared():
        return tree.build(store, scope, manifest, SELECTION, placement)


def half_made(store: Store) -> list[str]:
    return [path.name for path in (store.root / "trees").iterdir() if path.name.startswith(".")]


def test_a_tree_shows_the_blobs_themselves_read_only(store: Store, placement: Placement) -> None:
    built = build(store, placement)
    found = {p.relative_to(built.root).as_posix(): p for p in built.root.rglob("*")}
    assert set(found) == {"config.json", "empty", "sub", "sub/deep", "sub/deep/copy.json", "sub/weights"}
    assert {p.stat().st_mode & 0o7777 for p in found.values() if p.is_file()} == {0o444}
    assert {p.stat().st_mode & 0o7777 for p in (built.root, *found.values()) if p.is_dir()} == {0o555}
    assert found["sub/weights"].samefile(store.blob_path(Digest.of(WEIGHTS)))
    assert found["config.json"].samefile(found["sub/deep/copy.json"])
    assert (built.files, built.bytes) == (3, 2 * len(CONFIG) + len(WEIGHTS))
    assert tree.files(store, built) == [(f.path, f.source, f.size) for f in placement.files]


def test_a_tree_is_found_by_scope_manifest_and_selection_only(store: Store, placement: Placement) -> None:
    built = build(store, placement)
    assert tree.find(store, SCOPE, MANIFEST, SELECTION) == built == tree.load(store, built.id)
    assert tree.find(store, OTHER_SCOPE, MANIFEST, SELECTION) is None
    assert tree.find(store, SCOPE, OTHER_MANIFEST, SELECTION) is None
    assert tree.find(store, SCOPE, MANIFEST, "some") is None


def test_equal_layouts_share_one_tree(store: Store, placement: Placement) -> None:
    first = build(store, placement)
    inode = first.root.stat().st_ino
    second = build(store, placement, OTHER_SCOPE, OTHER_MANIFEST)
    assert (second, second.root.stat().st_ino) == (first, inode)
    assert tree.find(store, OTHER_SCOPE, OTHER_MANIFEST, SELECTION) == first


def test_another_path_source_or_empty_directory_is_another_tree(placement: Placement) -> None:
    one, *rest = placement.files
    ids = {
        tree.tree_id(placement),
        tree.tree_id(Placement((File("x", one.source, one.size), *rest), placement.directories)),
        tree.tree_id(Placement((File(one.path, "ab" * 32, one.size), *rest), placement.directories)),
        tree.tree_id(Placement(placement.files, (*placement.directories, "z"))),
    }
    assert len(ids) == 4


@pytest.mark.parametrize("content", [b"", b"{", b'{"tree": 1}', b"\xff"])
def test_an_unreadable_view_is_made_again(store: Store, placement: Placement, content: bytes) -> None:
    built = build(store, placement)
    view = store.root / "views" / SCOPE / tree.view_key(MANIFEST, SELECTION)
    view.write_bytes(content)
    assert tree.find(store, SCOPE, MANIFEST, SELECTION) is None
    assert build(store, placement) == built == tree.find(store, SCOPE, MANIFEST, SELECTION)


def test_a_view_of_a_tree_that_is_gone_leads_nowhere(store: Store, placement: Placement) -> None:
    built = build(store, placement)
    (store.root / "trees" / built.id).rename(store.root / "trash" / "x")
    assert tree.find(store, SCOPE, MANIFEST, SELECTION) is None
    assert tree.load(store, built.id) is None
    with pytest.raises(Internal, match="is gone"):
        tree.files(store, built)
    assert build(store, placement) == built


def test_a_damaged_record_says_what_to_run(store: Store, placement: Placement) -> None:
    built = build(store, placement)
    (store.root / "trees" / built.id / "tree.json").write_bytes(b"{")
    with pytest.raises(Internal, match="modelmount doctor"):
        tree.load(store, built.id)


def test_a_tree_without_record_is_not_called_complete(store: Store, placement: Placement) -> None:
    built = build(store, placement)
    (store.root / "trees" / built.id / "tree.json").unlink()
    with pytest.raises(Internal, match=r"without its tree\.json"):
        build(store, placement)
    assert half_made(store) == []


def test_a_size_that_the_source_does_not_have_is_refused(store: Store, placement: Placement) -> None:
    lie = Placement((File("weights", Digest.of(WEIGHTS).hex, 5),), ())
    with pytest.raises(Precondition, match=f"should have 5 bytes, its source .* has {len(WEIGHTS)}"):
        build(store, lie)
    store.blob_path(Digest.of(CONFIG)).chmod(0o600)
    os.truncate(store.blob_path(Digest.of(CONFIG)), 0)
    with pytest.raises(Precondition, match="the store is damaged"):
        build(store, placement)
    assert half_made(store) == []


def test_a_source_that_vanished_leaves_no_tree(store: Store, placement: Placement) -> None:
    store.blob_path(Digest.of(WEIGHTS)).unlink()
    with pytest.raises(Internal, match="No such file"):
        build(store, placement)
    assert list((store.root / "trees").iterdir()) == []


def test_a_file_with_no_link_left_is_copied_durably(
    store: Store, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link
    synced = recorded_fsyncs(monkeypatch, store)

    def full(source: str | Path, target: str | Path) -> None:
        if Path(target).name == "copy.json":
            raise OSError(errno.EMLINK, "Too many links")
        link(source, target)

    monkeypatch.setattr(os, "link", full)
    built = build(store, placement)
    copy = built.root / "sub/deep/copy.json"
    assert copy.read_bytes() == CONFIG
    assert not copy.samefile(store.blob_path(Digest.of(CONFIG)))
    assert copy.stat().st_mode & 0o7777 == 0o444
    assert "TREE/root/sub/deep/copy.json" in synced
    assert tree.files(store, built)[1] == ("sub/deep/copy.json", Digest.of(CONFIG).hex, len(CONFIG))


def recorded_fsyncs(monkeypatch: pytest.MonkeyPatch, store: Store) -> list[str]:
    """What is synced or renamed, in order, below the store; a half-made tree is called TREE."""
    found: list[str] = []
    fsync, rename = os.fsync, atomic.rename_noreplace

    def short(path: Path) -> str:
        parts = path.relative_to(store.root).parts
        return "/".join(("TREE", *parts[2:]) if parts[0] == "trees" and len(parts) > 1 else parts)

    def recording(fd: int) -> None:
        found.append(short(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    def renaming(source: Path, destination: Path) -> None:
        found.append("rename")
        rename(source, destination)

    monkeypatch.setattr(os, "fsync", recording)
    monkeypatch.setattr(atomic, "rename_noreplace", renaming)
    return found


def test_everything_is_synced_bottom_up_before_the_rename(
    store: Store, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = recorded_fsyncs(monkeypatch, store)
    build(store, placement)
    assert synced[: synced.index("trees") + 1] == [
        "TREE/tree.json",
        "TREE/root/sub/deep",
        "TREE/root/sub",
        "TREE/root/empty",
        "TREE/root",
        "TREE",
        "rename",
        "trees",
    ]
    assert synced[-1] == f"views/{SCOPE}"


@pytest.mark.parametrize("point", ["snapshots.tree.before_sync", "snapshots.tree.before_rename"])
def test_an_error_on_the_way_leaves_nothing(store: Store, placement: Placement, point: str) -> None:
    with atomic.armed(f"{point}=error(ENOSPC)"), pytest.raises(NoSpace, match="no space left to link the tree"):
        build(store, placement)
    assert list((store.root / "trees").iterdir()) == []
    assert tree.find(store, SCOPE, MANIFEST, SELECTION) is None
    assert build(store, placement).files == 3


KILLED = """
import sys
from pathlib import Path
from modelmount.content.store import Store
from modelmount.formats.base import File, Placement
from modelmount.oci.digest import Digest
from modelmount.snapshots import tree
store = Store(Path(sys.argv[1]))
digest = Digest.of(b"{}")
store.put_document(b"{}", digest, sys.argv[2])
with store.locks.shared():
    tree.build(store, sys.argv[2], Digest.of(b"manifest"), "all", Placement((File("d/a", digest.hex, 2),), ("d",)))
"""


@pytest.mark.parametrize("step", ["before_sync", "before_rename", "after_rename", "before_view"])
def test_killed_there_the_tree_is_whole_or_absent(store: Store, step: str) -> None:
    process = start(KILLED, str(store.root), SCOPE, env={"MODELMOUNT_FAILPOINTS": f"snapshots.tree.{step}=kill"})
    try:
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        stop(process)
    trees = [path for path in (store.root / "trees").iterdir() if not path.name.startswith(".")]
    assert len(trees) == (1 if step in {"after_rename", "before_view"} else 0)
    assert all((path / "root/d/a").read_bytes() == b"{}" and tree.load(store, path.name) for path in trees)
    assert tree.find(store, SCOPE, MANIFEST, SELECTION) is None
    built = build(store, Placement((File("d/a", Digest.of(b"{}").hex, 2),), ("d",)))
    assert tree.find(store, SCOPE, MANIFEST, SELECTION) == built


@pytest.mark.mount
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", "size=1m,nr_inodes=60") as small:
        store = Store(small / "store")
        config = put(store, CONFIG)
        many = Placement(
            tuple(File(f"d{n:02}/a", config.hex, 2) for n in range(80)), tuple(f"d{n:02}" for n in range(80))
        )
        with pytest.raises(NoSpace):
            build(store, many)
        assert list((store.root / "trees").iterdir()) == []
        assert build(store, Placement((File("a", config.hex, 2),), ())).files == 1
