"""What is in the store and which model it belongs to, read from names and documents alone: no lock, nothing written.

Two kinds of things are told apart. *Items* are what takes the space, a blob or an unpacked layer. *Models* are what
people know: a manifest, with everything that it names. A tree belongs to the models whose views lead to it.

A node may have hundreds of thousands of items, and this is read inside the driver. So an item's
name is one string wherever it stands, and what never changes is read once (docs/design/0025).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelmount.cache.items import Item, Items, total
from modelmount.content.store import Store
from modelmount.errors import InvalidRequest, ModelMountError
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.pull import resolver, verdicts
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
    items: tuple[str, ...] = ()
    has_facts: bool = False
    namespace: str = ""

    @property
    def digest(self) -> str:
        """As a person would write it."""
        return str(_digest(self.hex))

    @property
    def is_recorded(self) -> bool:
        """Whether anything but a hold of it says that there is such a model."""
        return bool(self.references or self.views or self.has_facts)

    @property
    def name(self) -> str:
        """A reference to it, else its digest."""
        return min(self.references, default=self.digest)


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
class Group:
    """Items with the same `users`, models by their hex digits, together: there are as many as models, and not as items.
    `again` are the bytes that it takes to have them again.
    """

    users: set[str]
    bytes: int = 0
    again: int = 0
    inodes: int = 0


@dataclass(slots=True)
class Census:
    """One look. `trees` has the items of each complete tree, `other_bytes` what lies in trash and quarantine.

    `unpacked` has the layers that came of a blob, by the blob's name; `unnamed` the items that no model and no tree
    names, with the time when they came, in wall-clock seconds.
    """

    models: dict[str, Model] = field(default_factory=dict)
    items: Mapping[str, Item] = field(default_factory=dict)
    unpacked: dict[str, list[str]] = field(default_factory=dict)
    unnamed: dict[str, float] = field(default_factory=dict)
    trees: dict[str, tuple[str, ...]] = field(default_factory=dict)
    trees_made_at: dict[str, float] = field(default_factory=dict)
    partials: dict[str, Partial] = field(default_factory=dict)
    other_bytes: int = 0
    _sorted: list[tuple[frozenset[str], list[Item]]] = field(default_factory=list, init=False, repr=False)

    @property
    def bytes(self) -> int:
        """What all of it takes on the disk, but for directories and small records."""
        return self.other_bytes + total(self.items.values()) + sum(partial.bytes for partial in self.partials.values())

    def present(self, blobs: tuple[str, ...]) -> tuple[str, ...]:
        """The items that are these blobs, or unpacked from them."""
        found = blobs if all(map(self.items.__contains__, blobs)) else tuple(filter(self.items.__contains__, blobs))
        unpacked = [each for name in blobs for each in self.unpacked.get(name, ())] if self.unpacked else []
        return (*found, *unpacked) if unpacked else found

    def own(self, names: Iterable[str]) -> tuple[str, ...]:
        """The same names; those of items are the items' own strings."""
        found = self.items.get
        return tuple([name if (item := found(name)) is None else item.name for name in names])

    def trees_of(self, model: Model) -> set[str]:
        """Its trees that are there."""
        return model.trees & self.trees.keys()

    def names_of(self, model: Model) -> set[str]:
        """All items behind a model, by its manifest and by its trees."""
        return set(model.items).union(*(self.trees[tree] for tree in self.trees_of(model)))

    def users(self) -> dict[str, frozenset[str]]:
        """Which models name each item that is there, directly or by a tree. Items with the same users share one set."""
        return {item.name: users for users, items in self._by_users() for item in items}

    def groups(self, without: Container[str] = ()) -> list[Group]:
        """Its items by who names them, those that are there, but for some."""
        found = []
        for users, items in self._by_users():
            if left := [item for item in items if item.name not in without] if without else items:
                found.append(self._group(users, left))
        return found

    def _by_users(self) -> list[tuple[frozenset[str], list[Item]]]:
        """The items by who names them, sorted once. Most have one user, so that whole sets are told apart, and only
        what is shared is looked at name by name.
        """
        if not self._sorted:
            self._sorted = [
                (users, items)
                for users, names in self._names_by_users()
                if (items := [item for name in names if (item := self.items.get(name)) is not None])
            ]
        return self._sorted

    def _names_by_users(self) -> Iterator[tuple[frozenset[str], set[str]]]:
        seen, shared = set[str](), set[str]()
        for model in self.models.values():
            names = self.names_of(model)
            shared |= names & seen
            seen |= names
        users: dict[str, frozenset[str]] = {}
        joined: dict[tuple[frozenset[str], str], frozenset[str]] = {}
        nobody = frozenset[str]()
        for model in self.models.values():
            names = self.names_of(model)
            yield frozenset({model.hex}), names - shared
            for name in names & shared:
                key = (users.get(name, nobody), model.hex)
                if key not in joined:
                    joined[key] = key[0] | {model.hex}
                users[name] = joined[key]
        together: dict[frozenset[str], set[str]] = {}
        for name, several in users.items():
            together.setdefault(several, set()).add(name)
        yield from together.items()

    def _group(self, users: frozenset[str], items: list[Item]) -> Group:
        taken = total(items)
        unpacked = total(item for item in items if item.name.startswith("unpacked/")) if self.unpacked else 0
        return Group(set(users), taken, taken + unpacked, sum([item.inodes for item in items]))


class Reader:
    """Reads a store's census again and again. Content never changes once it has its name, so that each item, document
    and tree is looked at once; safe to use from many threads.
    """

    def __init__(self, store: Store) -> None:
        """Nothing is read yet."""
        self._store = store
        self._items = Items(store)
        self._named: dict[str, tuple[str, ...]] = {}
        self._trees: dict[_TreeKey, tuple[str, ...]] = {}

    def read(self, held: Iterable[str] = ()) -> Census:
        """Look now. Others work meanwhile: what comes and goes is in the answer or isn't. Downloads are read before
        what they become, so that no byte is left out. `held` names models that count though nothing is recorded of
        them. Raises OSError where a directory can't be read.
        """
        census = Census()
        for partial in _partials(self._store):
            census.partials[partial.name] = partial
        census.items = self._items.read(self._recorded)
        for item in census.items.values():
            if item.name.startswith("unpacked/"):
                census.unpacked.setdefault(_blob(item.hex), []).append(item.name)
        known, self._trees = self._trees, {}
        for identity, made_at in _complete_trees(self._store):
            census.trees[identity] = self._tree_items(identity, known, census)
            census.trees_made_at[identity] = made_at
        self._read_models(census, held)
        unnamed = set(census.items)
        for names in (*census.trees.values(), *(model.items for model in census.models.values())):
            unnamed.difference_update(names)
        census.unnamed = {name: self._came_at(name) for name in unnamed}
        census.other_bytes = self._other_bytes()
        return census

    def used_bytes(self) -> int:
        """`Census.bytes` alone, for less."""
        found = sum(partial.bytes for partial in _partials(self._store))
        return found + total(self._items.read(self._recorded).values()) + self._other_bytes()

    def _other_bytes(self) -> int:
        # Trees in there may still share files with the blobs.
        rooms = (self._store.root / "trash", self._store.root / "quarantine")
        return disk.exclusive_bytes(path for room in rooms for path in room.iterdir())

    def named_by(self, census: Census, hex_digits: str) -> tuple[str, ...]:
        """The items of the census that the manifest with this digest names, itself among them."""
        return census.present(self._names(hex_digits, census))

    # -- models

    def _read_models(self, census: Census, held: Iterable[str]) -> None:
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
                index = _hex(known.digest)
                if index is not None and index != owner:
                    model.items += census.present(census.own((_blob(index),)))
                if not model.has_facts:
                    model.used_at = max(model.used_at, known.at)
        for hex_digits, model in found.items():
            model.items += census.present(self._names(hex_digits, census))
            if not model.has_facts:
                # Where those were lost (to a sweep that couldn't read a view), uses are noted all the same.
                model.used_at = max(model.used_at, verdicts.used_at(self._store, hex_digits))
        census.models = found

    def _names(self, hex_digits: str, census: Census) -> tuple[str, ...]:
        """What the manifest with this digest names, itself among it, as blobs are called. Where it isn't here, or isn't
        one, that is itself alone.
        """
        known = self._named.get(hex_digits)
        if known is not None:
            return known
        own = _blob(hex_digits)
        if own not in census.items:
            return (own,)
        try:
            digests = manifests.named_digests(self._store.read_document(_digest(hex_digits)))
        except ModelMountError:
            return (own,)  # no manifest though a model is called so, or a damaged one: it names nothing
        self._named[hex_digits] = found = census.own({own, *map(_blob, digests)})
        return found

    def _came_at(self, name: str) -> float:
        """When an item last came from somewhere. A blob's own time says nothing, for every file of a model has the
        same.
        """
        path = self._store.root / name
        try:
            if name.startswith("unpacked/"):
                return (path / "index.json").stat().st_mtime
            try:
                return (self._store.root / "scopes" / path.name).stat().st_mtime
            except FileNotFoundError:
                return path.stat().st_ctime
        except FileNotFoundError:
            return math.inf  # it is gone again, and nobody need take it

    def _recorded(self) -> dict[str, Item]:
        """The blobs that trees link, with the sizes that they had when they were linked: to read those of a whole store
        takes a fraction of what asking each file does.
        """
        block = os.statvfs(self._store.root).f_frsize
        found: dict[str, Item] = {}
        blocks: dict[int, int] = {}  # small files take few sizes, which need not be held for each
        for identity, _ in _complete_trees(self._store):
            try:
                key, sizes = self._tree_key(identity), trees.items(self._store, identity)
            except (FileNotFoundError, ModelMountError):
                continue  # gone, or the look that comes next says what is wrong with it
            names = []
            for name, size in sizes.items():
                item = found.get(name)
                if item is None and name.startswith("blobs/"):
                    taken = -(-size // block) * block
                    item = found[name] = Item(name, blocks.setdefault(taken, taken), 1)
                names.append(name if item is None else item.name)
            self._trees[key] = tuple(names)
        return found

    def _tree_key(self, identity: str) -> _TreeKey:
        return identity, (self._store.root / "trees" / identity).stat().st_ino

    def _tree_items(self, identity: str, known: Mapping[_TreeKey, tuple[str, ...]], census: Census) -> tuple[str, ...]:
        try:
            key = self._tree_key(identity)
            found = known.get(key)
            if found is None:
                found = census.own(trees.items(self._store, identity))
        except FileNotFoundError:
            return ()
        except ModelMountError as e:
            # Nothing of it goes all the same: its files have more than one name.
            log.error("%s", e)
            return ()
        self._trees[key] = found
        return found


def _blob(hex_digits: str) -> str:
    return f"blobs/{'sha512' if len(hex_digits) == 128 else 'sha256'}/{hex_digits}"


def _partials(store: Store) -> Iterator[Partial]:
    for directory in disk.visible(store.root / "ingest"):
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
    for directory in disk.visible(store.root / "trees"):
        try:
            yield directory.name, (directory / "tree.json").stat().st_mtime
        except FileNotFoundError:
            continue


def _get(found: dict[str, Model], hex_digits: str) -> Model:
    return found.setdefault(hex_digits, Model(hex_digits))


def _hex(digest: str) -> str | None:
    try:
        return Digest.parse(digest).hex
    except InvalidRequest:
        return None


def _digest(hex_digits: str) -> Digest:
    return Digest("sha512" if len(hex_digits) == 128 else "sha256", hex_digits)
