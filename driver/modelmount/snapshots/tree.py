"""Trees: `trees/<id>/root/` is what pods see; `views/<scope>/<key>` says which tree a manifest is for a scope.

`root/` holds hard links of verified files (0444) in real directories (0555). Everything here runs under the shared
store lock, held by the caller where the docstring says so, which is what keeps a sweep away from half-made trees.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from modelmount.content.diskerrors import translated
from modelmount.content.store import Store
from modelmount.errors import Internal, Precondition
from modelmount.formats.base import File, Placement
from modelmount.oci.digest import Digest
from modelmount.snapshots import layers
from modelmount.system import atomic

LAYOUT_RULES = 2
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


class _TreeSource(msgspec.Struct, frozen=True, gc=False):
    source: str
    size: int


class _TreeSources(msgspec.Struct, frozen=True):
    """What a look at all trees needs of a record: they may have hundreds of thousands of files."""

    files: list[_TreeSource]


_T = TypeVar("_T", _TreeRecord, _TreeSources)


class _View(msgspec.Struct, frozen=True):
    tree: str
    bytes: int
    files: int
    manifest: str


@dataclass(frozen=True, slots=True)
class View:
    """Which tree a manifest is for a scope."""

    path: Path
    tree: str
    manifest: str


def view_key(manifest: Digest, selection: str) -> str:
    """Name of a view: manifest, selection and layout rules decide what is seen."""
    return hashlib.sha256(f"{manifest}\n{selection}\n{LAYOUT_RULES}".encode()).hexdigest()


def find(store: Store, scope: str, manifest: Digest, selection: str) -> Tree | None:
    """The scope's tree of this manifest, when it is complete. The caller holds the shared store lock until its lease
    stands.
    """
    try:
        data = atomic.read_file(f"{store.root}/views/{scope}/{view_key(manifest, selection)}")
        view = msgspec.json.decode(data, type=_View)
    except (OSError, msgspec.DecodeError):
        return None  # views are derived: an unreadable one is made again
    root = Path(f"{store.root}/trees/{view.tree}/root")
    return Tree(view.tree, root, view.bytes, view.files) if root.is_dir() else None


def load(store: Store, tree_id: str) -> Tree | None:
    """The tree with this id, when it is complete. Raises Internal when it is damaged."""
    directory = store.root / "trees" / tree_id
    record = _read(directory, _TreeRecord)
    return Tree(tree_id, directory / "root", record.bytes, len(record.files)) if record is not None else None


def files(store: Store, tree: Tree) -> list[tuple[str, str, int]]:
    """(path, source, size) of every file, by path. Raises Internal when the tree is damaged or gone."""
    record = _read(store.root / "trees" / tree.id, _TreeRecord)
    if record is None:
        raise Internal(f"tree {tree.id} is gone; publish the volume again")
    return [(f.path, f.source, f.size) for f in record.files]


def views(store: Store) -> Iterator[View]:
    """The views of all scopes; what vanishes meanwhile or can't be read is left out, for it is made again."""
    for path in (store.root / "views").glob("*/[0-9a-f]*"):
        try:
            view = msgspec.json.decode(atomic.read_file(path), type=_View)
        except (OSError, msgspec.DecodeError):
            continue
        yield View(path, view.tree, view.manifest)


def items(store: Store, tree_id: str) -> dict[str, int]:
    """The names in the store (`layers.item`) of what the tree's files are links of, with the size of one of these
    files: a blob has only the one. Empty when the tree is gone. Raises Internal when it is damaged.
    """
    record = _read(store.root / "trees" / tree_id, _TreeSources)
    return {} if record is None else {layers.item(f.source): f.size for f in record.files}


def _read(directory: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode((directory / "tree.json").read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as e:
        raise Internal(f"tree {directory.name} has an unreadable tree.json: {e}; run `modelmount doctor`") from e


def tree_id(placement: Placement) -> str:
    """sha256 of the canonical layout, so that equal layouts share a tree."""
    canonical = [list(placement.directories), [[f.path, f.source] for f in placement.files]]
    return hashlib.sha256(msgspec.json.encode(canonical)).hexdigest()


def build(store: Store, scope: str, manifest: Digest, selection: str, placement: Placement) -> Tree:
    """Link the tree if it isn't there and record the scope's view of it. The caller holds the shared store lock and
    checked every source's scope.

    Raises NoSpace, Internal; Precondition where a source doesn't have the size that the artifact declares. Nothing
    half-made stays behind.
    """
    identity = tree_id(placement)
    with translated(f"link the tree of {manifest}"):
        tree = load(store, identity)
        if tree is None:
            _link(store, identity, placement)
            tree = load(store, identity)
            if tree is None:
                raise Internal(f"tree {identity} is there without its tree.json; run `modelmount doctor`")
        view = store.root / "views" / scope / view_key(manifest, selection)
        if not view.parent.exists():
            view.parent.mkdir(mode=0o700, exist_ok=True)
            atomic.fsync_directory(view.parent.parent)
        atomic.failpoint("snapshots.tree.before_view")
        atomic.write_file(view, msgspec.json.encode(_View(identity, tree.bytes, tree.files, str(manifest))))
    return tree


def _link(store: Store, identity: str, placement: Placement) -> None:
    final = store.root / "trees" / identity
    half_made = atomic.temporary_beside(final)
    root = half_made / "root"
    try:
        root.mkdir(mode=0o755, parents=True)
        for directory in placement.directories:
            (root / directory).mkdir(mode=0o755)
        for file in placement.files:
            _place(store, file, f"{root}/{file.path}")
        _write_synced(half_made / "tree.json", msgspec.json.format(msgspec.json.encode(_record(identity, placement))))
        atomic.failpoint("snapshots.tree.before_sync")
        for directory in (*reversed(placement.directories), ""):  # sorted by path: children come before their parents
            (root / directory).chmod(0o555)
            os.utime(root / directory, (atomic.AGELESS, atomic.AGELESS))
            atomic.fsync_directory(root / directory)
        atomic.fsync_directory(half_made)
        atomic.failpoint("snapshots.tree.before_rename")
        try:
            atomic.rename_noreplace(half_made, final)
        except FileExistsError:
            shutil.rmtree(half_made)
        atomic.failpoint("snapshots.tree.after_rename")
        atomic.fsync_directory(final.parent)
    except BaseException:
        shutil.rmtree(half_made, ignore_errors=True)
        raise


def _record(identity: str, placement: Placement) -> _TreeRecord:
    return _TreeRecord(
        identity,
        sum(f.size for f in placement.files),
        [_TreeFile(f.path, f.source, f.size) for f in placement.files],
        list(placement.directories),
    )


def _place(store: Store, file: File, target: str) -> None:
    source = layers.source_name(store, file.source)
    size = os.lstat(source).st_size
    if size != file.size:
        raise Precondition(
            f"{file.path} should have {file.size} bytes, its source {file.source} has {size}: the artifact declares a "
            "wrong size, or the store is damaged; push the model again, or run `modelmount doctor`"
        )
    try:
        os.link(source, target)
    except OSError as e:
        if e.errno != errno.EMLINK:  # ext4 allows 65,000 names an inode; a popular licence file can reach that
            raise
        with Path(source).open("rb") as original, Path(target).open("xb") as copy:
            shutil.copyfileobj(original, copy, 1 << 20)
            copy.flush()
            atomic.seal(copy.fileno())
            os.fsync(copy.fileno())


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o444)  # its time stays: it says when the tree was made
        os.fsync(file.fileno())
