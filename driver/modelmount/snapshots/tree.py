"""Trees: `trees/<id>/root/` is what pods see; `views/<scope>/<key>` says which tree a manifest is for a scope.

`root/` holds hard links of verified files (0444) in real directories (0555). Everything here runs under the shared
store lock, held by the caller where the docstring says so, which is what keeps a sweep away from half-made trees.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelmount.content.store import Store
from modelmount.errors import Internal
from modelmount.formats.base import File, Placement
from modelmount.oci.digest import Digest
from modelmount.snapshots import layers
from modelmount.system import atomic

LAYOUT_RULES = 1
"""Rises when the same manifest and selection would be linked differently; a change relinks locally."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A complete tree. `root` is the directory to mount."""

    id: str
    root: Path
    bytes: int
    files: int


class _TreeFile(msgspec.Struct, frozen=True):
    path: str
    source: str
    size: int


class _TreeRecord(msgspec.Struct, frozen=True):
    id: str
    bytes: int
    files: list[_TreeFile]
    directories: list[str]


class _View(msgspec.Struct, frozen=True):
    tree: str
    bytes: int
    files: int


def view_key(manifest: Digest, selection: str) -> str:
    """Name of a view: manifest, selection and layout rules decide what is seen."""
    return hashlib.sha256(f"{manifest}\n{selection}\n{LAYOUT_RULES}".encode()).hexdigest()


def find(store: Store, scope: str, manifest: Digest, selection: str) -> Tree | None:
    """The scope's tree of this manifest, when it is complete. The caller holds the shared store lock until its lease
    stands.
    """
    try:
        view = msgspec.json.decode(
            (store.root / "views" / scope / view_key(manifest, selection)).read_bytes(), type=_View
        )
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # views are derived: an unreadable one is made again
    root = store.root / "trees" / view.tree / "root"
    return Tree(view.tree, root, view.bytes, view.files) if root.is_dir() else None


def load(store: Store, tree_id: str) -> Tree | None:
    """The tree with this id, when it is complete."""
    try:
        record = msgspec.json.decode((store.root / "trees" / tree_id / "tree.json").read_bytes(), type=_TreeRecord)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as e:
        raise Internal(f"tree {tree_id} has an unreadable tree.json: {e}; run `modelmount doctor`") from e
    return Tree(tree_id, store.root / "trees" / tree_id / "root", record.bytes, len(record.files))


def files(store: Store, tree: Tree) -> list[tuple[str, str, int]]:
    """(path, source, size) of every file, by path."""
    record = msgspec.json.decode((tree.root.parent / "tree.json").read_bytes(), type=_TreeRecord)
    return [(f.path, f.source, f.size) for f in record.files]


def tree_id(placement: Placement) -> str:
    """sha256 of the canonical layout, so that equal layouts share a tree."""
    canonical = [list(placement.directories), [[f.path, f.source] for f in placement.files]]
    return hashlib.sha256(msgspec.json.encode(canonical)).hexdigest()


def build(store: Store, scope: str, manifest: Digest, selection: str, placement: Placement) -> Tree:
    """Link the tree if it isn't there and record the scope's view of it. The caller holds the shared store lock and
    checked every source's scope.
    """
    identity = tree_id(placement)
    tree = load(store, identity)
    if tree is None:
        _link(store, identity, placement)
        tree = load(store, identity)
        if tree is None:
            raise Internal(f"tree {identity} vanished while it was made; try again")
    view = store.root / "views" / scope / view_key(manifest, selection)
    if not view.parent.exists():
        view.parent.mkdir(mode=0o700, exist_ok=True)
        atomic.fsync_directory(view.parent.parent)
    atomic.failpoint("snapshots.tree.before_view")
    atomic.write_file(view, msgspec.json.encode(_View(identity, tree.bytes, tree.files)))
    return tree


def _link(store: Store, identity: str, placement: Placement) -> None:
    final = store.root / "trees" / identity
    half_made = final.with_name(f".{identity}.{os.urandom(6).hex()}")
    root = half_made / "root"
    try:
        root.mkdir(mode=0o755, parents=True)
        for directory in placement.directories:
            (root / directory).mkdir(mode=0o755)
        for file in placement.files:
            _place(store, file, root / file.path)
        record = _TreeRecord(
            identity,
            sum(f.size for f in placement.files),
            [_TreeFile(f.path, f.source, f.size) for f in placement.files],
            list(placement.directories),
        )
        _write_synced(half_made / "tree.json", msgspec.json.format(msgspec.json.encode(record)))
        atomic.failpoint("snapshots.tree.before_sync")
        for directory in (
            *reversed(placement.directories),
            "",
        ):  # sorted by path, so children come before their parents
            (root / directory).chmod(0o555)
            atomic.fsync_directory(root / directory)
        atomic.fsync_directory(half_made)
        atomic.failpoint("snapshots.tree.before_rename")
        try:
            atomic.rename_noreplace(half_made, final)
        except FileExistsError:
            shutil.rmtree(half_made)
        atomic.fsync_directory(final.parent)
    except BaseException:
        shutil.rmtree(half_made, ignore_errors=True)
        raise


def _place(store: Store, file: File, target: Path) -> None:
    source = layers.source_path(store, file.source)
    try:
        os.link(source, target)
    except OSError as e:
        if e.errno != errno.EMLINK:  # ext4 allows 65,000 names an inode; a popular licence file can reach that
            raise
        with open(source, "rb") as original, open(target, "xb") as copy:
            shutil.copyfileobj(original, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
            os.fchmod(copy.fileno(), 0o444)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
