"""Blobs and unpacked layers: what takes the space, and goes as a whole. Content never changes once it has its name, so
that each is looked at once.

There may be hundreds of thousands, inside the driver: what is done for each is short, and what is held of each small
(docs/design/0025).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from modelmount.content.store import Store
from modelmount.snapshots import layers
from modelmount.system import disk

_BLOBS = ("blobs/sha256", "blobs/sha512")
SETTLED_NS = 1_000_000_000
"""How long ago a directory must have changed, so that its time tells whether it changes again."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """A blob or an unpacked layer, known by its path below the store's root. `bytes` are allocated ones: asked of the
    disk, or whole blocks where a record has its size.
    """

    name: str
    bytes: int
    inodes: int

    @property
    def hex(self) -> str:
        """The digest it is found by."""
        return self.name.split("/")[2 if self.name.startswith("blobs/") else 1]


def total(items: Iterable[Item]) -> int:
    """The bytes of all."""
    return sum([item.bytes for item in items])


class Items:
    """Those of a store, read again and again; safe to use from many threads."""

    def __init__(self, store: Store) -> None:
        """Nothing is read yet."""
        self._store = store
        self._lock = threading.Lock()
        self._items: dict[str, Item] = {}
        self._unpacked: dict[str, Item] = {}
        self._marks: dict[str, int | None] = {}
        self._sizes: dict[int, int] = {}
        self._layers: dict[tuple[str, int], Item] = {}

    def read(self, recorded: Callable[[], dict[str, Item]] = dict) -> Mapping[str, Item]:
        """All of them by name. What stood there at the last look isn't asked again, and where neither came nor went
        anything since, it isn't listed again either. Before the first look `recorded` is asked what is known of blobs
        from elsewhere, whether they are there or not. Raises OSError where a directory can't be read.
        """
        with self._lock:
            if not self._marks:
                self._items = recorded()
            marks = {room: self._mark(room) for room in _BLOBS}
            unpacked = {item.name: item for item in self._read_unpacked()}
            if self._marks == marks and None not in marks.values() and self._unpacked == unpacked:
                return self._items
            found = dict[str, Item]()
            for room in _BLOBS:
                self._read_blobs(room, found)
            found.update(unpacked)
            self._items, self._unpacked, self._marks = found, unpacked, marks
            return found

    def _read_blobs(self, room: str, found: dict[str, Item]) -> None:
        known = self._items.get
        with _opened(self._store.root / room) as fd, os.scandir(fd) as entries:
            for entry in entries:
                name = f"{room}/{entry.name}"
                item = known(name) or self._blob(name, entry)
                if item is not None:
                    found[item.name] = item

    def _mark(self, room: str) -> int | None:
        """Changes whenever a name comes or goes; None when that was so lately that another could come unseen: a time
        on a disk is as exact as the kernel's tick.
        """
        changed = os.stat(self._store.root / room).st_mtime_ns
        return changed if time.time_ns() - changed > SETTLED_NS else None

    def _read_unpacked(self) -> Iterator[Item]:
        for layer in disk.visible(self._store.root / "unpacked"):
            for version in disk.visible(layer):
                try:
                    if (version / "index.json").exists():
                        yield self._layer(f"unpacked/{layer.name}/{version.name}", version)
                except FileNotFoundError:
                    continue

    def _blob(self, name: str, entry: os.DirEntry[str]) -> Item | None:
        if entry.name.startswith("."):
            return None
        try:
            size = entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            return None
        return Item(name, self._sizes.setdefault(size, size), 1)  # small files have few sizes on the disk

    def _layer(self, name: str, version: Path) -> Item:
        key = (name, version.stat().st_ino)
        if key not in self._layers:
            self._layers[key] = Item(name, *layers.footprint(version))
        return self._layers[key]


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """A descriptor: what is asked below it by name alone costs half."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
