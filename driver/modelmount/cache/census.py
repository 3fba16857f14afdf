"""What is in the store and which model it belongs to, read from names and documents alone: no lock, nothing written.

Two kinds of things are told apart. *Items* are what takes the space and goes as a whole, a blob or an unpacked layer;
they are known by their paths below the store's root. *Models* are what people know: a manifest, with everything that it
names. A tree belongs to the models whose views lead to it.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelmount.content.store import Store
from modelmount.errors import InvalidRequest, ModelMountError
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest
from modelmount.pull import resolver, verdicts
from modelmount.snapshots import layers
from modelmount.snapshots import tree as trees
from modelmount.system import disk

log = logging.getLogger(__name__)

_TreeKey = tuple[str, int]
"""A tree's id and its directory's inode."""


@dataclass(slots=True)
class Model:
    """One manifest and what it names, present or not. `used_at` is in wall-clock seconds; `namespace` used it last."""

    hex: str
    used_at: float = 0.0
    references: set[str] = field(default_factory=set)
    refs: set[Path] = field(default_factory=set)
    views: set[Path] = field(default_factory=set)
    trees: set[str] = field(default_factory=set)
    items: set[str] = field(default_factory=set)
    has_facts: bool = False
    namespace: str = ""

    @property
    def digest(self) -> str:
        """As a person would write it."""
        return str(_digest(self.hex))

    @property
    def name(self) -> str:
        """A reference to it, else its digest."""
        return min(self.references, default=self.digest)


@dataclass(frozen=True, slots=True)
class Item:
    """A blob or an unpacked layer. `bytes` are allocated ones; `written_at` is in wall-clock seconds."""

    name: str
    bytes: int
    inodes: int
    written_at: float

    @property
    def hex(self) -> str:
        """The digest it is found by."""
        return self.name.split("/")[2 if self.name.startswith("blobs/") else 1]


@dataclass(frozen=True, slots=True)
class Partial:
    """A download under way or interrupted."""

    name: str
    bytes: int
    inodes: int
    written_at: float

    @property
    def hex(self) -> str:
        """The digest that it is to bring."""
        return self.name.partition("-")[0]


@dataclass(slots=True)
class Census:
    """One look. `trees` has the items of each complete tree, `other_bytes` what lies in trash and quarantine."""

    models: dict[str, Model] = field(default_factory=dict)
    items: dict[str, Item] = field(default_factory=dict)
    trees: dict[str, frozenset[str]] = field(default_factory=dict)
    trees_made_at: dict[str, float] = field(default_factory=dict)
    partials: dict[str, Partial] = field(default_factory=dict)
    other_bytes: int = 0

    @property
    def bytes(self) -> int:
        """What all of it takes on the disk, but for directories and small records."""
        content = sum(item.bytes for item in self.items.values())
        return self.other_bytes + content + sum(partial.bytes for partial in self.partials.values())

    def trees_of(self, model: Model) -> set[str]:
        """Its trees that are there."""
        return model.trees & self.trees.keys()

    def users(self) -> dict[str, set[str]]:
        """Which models name each item, directly or by a tree."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for model in self.models.values():
            for name in model.items:
                found[name].add(model.hex)
            for tree in self.trees_of(model):
                for name in self.trees[tree]:
                    found[name].add(model.hex)
        return found


class Reader:
    """Reads a store's census again and again. Documents and unpacked layers never change, so that each is read once;
    safe to use from many threads.
    """

    def __init__(self, store: Store) -> None:
        """Nothing is read yet."""
        self._store = store
        self._manifests: dict[str, Manifest | None] = {}
        self._layers: dict[tuple[str, int], disk.Footprint] = {}
        self._trees: dict[_TreeKey, frozenset[str]] = {}

    def read(self, held: Iterable[str] = ()) -> Census:
        """Look now. Others work meanwhile: what comes and goes is in the answer or isn't. Downloads are read before
        what they become, so that no byte is left out. `held` names models that count though nothing is recorded of
        them. Raises OSError where a directory can't be read.
        """
        census = Census()
        for partial in _partials(self._store):
            census.partials[partial.name] = partial
        for item in self._items():
            census.items[item.name] = item
        known, self._trees = self._trees, {}
        for identity, made_at in _complete_trees(self._store):
            census.trees[identity] = self._tree_items(identity, known)
            census.trees_made_at[identity] = made_at
        self._read_models(census, held)
        census.other_bytes = self._other_bytes()
        return census

    def used_bytes(self) -> int:
        """`Census.bytes` alone, for less."""
        found = sum(partial.bytes for partial in _partials(self._store))
        found += sum(item.bytes for item in self._items())
        return found + self._other_bytes()

    def _other_bytes(self) -> int:
        # Trees in there may still share files with the blobs.
        rooms = (self._store.root / "trash", self._store.root / "quarantine")
        return disk.exclusive_bytes(path for room in rooms for path in room.iterdir())

    def manifest_of(self, hex_digits: str) -> Manifest | None:
        """The manifest with this digest, when it is here and is one."""
        if hex_digits not in self._manifests:
            digest = _digest(hex_digits)
            if not self._store.blob_path(digest).exists():
                return None
            try:
                document = manifests.parse(self._store.read_document(digest))
            except ModelMountError:
                return None  # a blob with the name of a model that isn't one, or a damaged one: it names nothing
            self._manifests[hex_digits] = document if isinstance(document, Manifest) else None
        return self._manifests[hex_digits]

    def digests_of(self, hex_digits: str) -> set[str]:
        """Hex digits of everything that this manifest names, itself among it."""
        manifest = self.manifest_of(hex_digits)
        if manifest is None:
            return {hex_digits}
        named = (*manifest.layers, *([manifest.config] if manifest.config else []))
        return {hex_digits, *(descriptor.digest.hex for descriptor in named)}

    # -- models

    def _read_models(self, census: Census, held: Iterable[str]) -> None:
        here: defaultdict[str, set[str]] = defaultdict(set)
        for item in census.items.values():
            here[item.hex].add(item.name)
        found = {hex_digits: Model(hex_digits) for hex_digits in held if len(hex_digits) in {64, 128}}
        for hex_digits, used_at in verdicts.pulled_models(self._store):
            model = _get(found, hex_digits)
            model.used_at, model.has_facts = used_at, True
            model.namespace = verdicts.used_by(self._store, hex_digits)
        for view in trees.views(self._store):
            owner = _hex(view.manifest)
            if owner is not None:
                model = _get(found, owner)
                model.views.add(view.path)
                model.trees.add(view.tree)
        for path, known in resolver.references(self._store):
            owner = _hex(known.manifest)
            if owner is not None:
                model = _get(found, owner)
                model.references.add(known.reference)
                model.refs.add(path)
                model.items |= here[_hex(known.digest) or ""]  # an index, when it isn't the manifest itself
                if not model.has_facts:
                    model.used_at = max(model.used_at, known.at)
        for hex_digits, model in found.items():
            for named in self.digests_of(hex_digits):
                model.items |= here[named]
        census.models = found

    # -- items

    def _items(self) -> Iterator[Item]:
        for algorithm in ("sha256", "sha512"):
            with os.scandir(self._store.root / "blobs" / algorithm) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    came_at = self._came_at(entry.name, status)
                    yield Item(f"blobs/{algorithm}/{entry.name}", status.st_blocks * 512, 1, came_at)
        for layer in _visible(self._store.root / "unpacked"):
            for version in _visible(layer):
                try:
                    status = (version / "index.json").stat()
                except FileNotFoundError:
                    continue
                yield Item(f"unpacked/{layer.name}/{version.name}", *self._footprint(version), status.st_mtime)

    def _came_at(self, hex_digits: str, status: os.stat_result) -> float:
        """When a blob last came from somewhere: its own time says nothing, for every file of a model has the same."""
        try:
            return os.stat(self._store.root / "scopes" / hex_digits).st_mtime
        except FileNotFoundError:
            return status.st_ctime

    def _footprint(self, version: Path) -> disk.Footprint:
        key = (str(version), version.stat().st_ino)
        if key not in self._layers:
            self._layers[key] = layers.footprint(version)
        return self._layers[key]

    def _tree_items(self, identity: str, known: Mapping[_TreeKey, frozenset[str]]) -> frozenset[str]:
        try:
            key = (identity, (self._store.root / "trees" / identity).stat().st_ino)
            found = known[key] if key in known else trees.items(self._store, identity)
        except FileNotFoundError:
            return frozenset()
        except ModelMountError as e:
            # Nothing of it goes all the same: its files have more than one name.
            log.error("%s", e)
            return frozenset()
        self._trees[key] = found
        return found


def _partials(store: Store) -> Iterator[Partial]:
    for directory in _visible(store.root / "ingest"):
        written_at = partial_written_at(directory)
        if written_at is not None:
            yield Partial(directory.name, *disk.footprint(directory), written_at)


def partial_written_at(directory: Path) -> float | None:
    """When a download in this directory was last written to; None when it is gone."""
    try:
        return max(path.stat().st_mtime for path in (directory, *directory.iterdir()))
    except FileNotFoundError:
        return None


def _complete_trees(store: Store) -> Iterator[tuple[str, float]]:
    for directory in _visible(store.root / "trees"):
        try:
            yield directory.name, (directory / "tree.json").stat().st_mtime
        except FileNotFoundError:
            continue


def _visible(directory: Path) -> list[Path]:
    try:
        return [directory / name for name in os.listdir(directory) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _get(found: dict[str, Model], hex_digits: str) -> Model:
    return found.setdefault(hex_digits, Model(hex_digits))


def _hex(digest: str) -> str | None:
    try:
        return Digest.parse(digest).hex
    except InvalidRequest:
        return None


def _digest(hex_digits: str) -> Digest:
    return Digest("sha512" if len(hex_digits) == 128 else "sha256", hex_digits)
