"""How things go: two rounds, in short sections under the exclusive store lock in which every victim is looked at again.
First models: their views, references and records, trees, and partial downloads. Then items that nothing names any more,
with their scope records. In the sections things are renamed into `trash/` only; their bytes go outside.

Killed in between, the first round leaves a model without a tree, or content that nothing names: the next sweep takes
it. Nothing that stands is ever incomplete: views go before their trees, trees before their items, an item's name before
its scope records.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from modelmount.cache import order
from modelmount.cache.census import Census, Model, Partial, Reader, partial_written_at
from modelmount.cache.holds import Holds
from modelmount.content import trash
from modelmount.content.store import Store
from modelmount.pull import verdicts
from modelmount.snapshots import tree as trees
from modelmount.system import atomic
from modelmount.system.lock import LONGEST_DELAY_SECONDS, Held, LockTimeout
from modelmount.volumes import ours

log = logging.getLogger(__name__)

MODELS, ITEMS = 16, 256
"""How many go in one section: everybody who publishes waits for it. An item takes two renames, a model dozens."""
_T = TypeVar("_T")


@dataclass(slots=True)
class Swept:
    """What went. `bytes` are those that were freed on the disk, shared ones not among them."""

    models: list[str] = field(default_factory=list)
    trees: int = 0
    items: int = 0
    partials: int = 0
    bytes: int = 0


class Sweep:
    """One sweep of a store. `holds` is called under the lock each time. Two sweeps at once do no harm, but each counts
    on what the other takes: callers hold the `sweep` lock.
    """

    def __init__(
        self,
        store: Store,
        reader: Reader,
        holds: Callable[[], Holds],
        now: Callable[[], float],
        *,
        grace_seconds: float,
    ) -> None:
        """Nothing is done yet."""
        self._store, self._reader, self._holds, self._now = store, reader, holds, now
        self._grace = grace_seconds
        self._bin = store.root / "trash" / secrets.token_hex(8)

    def run(self, census: Census, models: Iterable[Model], partials: Iterable[Partial]) -> Swept:
        """Take these models and partial downloads, as far as nobody holds or used them since `census`, and all items
        that nothing names then. Raises OSError where the store fails; what went by then went whole.
        """
        swept = Swept()
        self._bin.mkdir(mode=0o700)
        try:
            self._first_round(census, list(models), list(partials), swept)
            # Trees go before the second look: their links count as a sign that a blob is shown.
            self._delete("trees", "ingest", "models")
            self._second_round(swept)
        finally:
            self._delete("blobs/sha256", "blobs/sha512", "unpacked", "scopes")
            try:
                self._bin.rmdir()
            except OSError:
                log.warning("something is left in %s; the next start tries again", self._bin)
        return swept

    def _delete(self, *rooms: str) -> None:
        """The bytes of what was discarded from `rooms`; their names are gone for good first, so that no power cut
        brings back the name of something half deleted.
        """
        if not any(self._bin.iterdir()):
            return
        for room in rooms:
            atomic.fsync_directory(self._store.root / room)
        atomic.failpoint("cache.sweep.before_delete")
        trash.empty(self._bin, sparing={tree.name for tree in ours.trees_in_use(self._store.root)})

    # -- models

    def _first_round(self, census: Census, models: list[Model], partials: list[Partial], swept: Swept) -> None:
        for some in _batches(models, MODELS):
            self._take_models(census, some, swept)
        released: list[Held] = []
        try:
            with self._store.locks.exclusive():
                holds = self._holds()
                self._take_trees(self._orphans(census), holds, swept)
                for partial in partials:
                    if partial.name not in holds.ingests:
                        self._take_partial(partial, swept, released)
        finally:
            for lock in released:
                lock.release(unlink=True)

    def _take_models(self, census: Census, models: Sequence[Model], swept: Swept) -> None:
        with self._store.locks.exclusive():
            holds = self._holds()
            held = order.held_models(census, holds)
            going = [model for model in models if model.hex not in held and self._unused_since(model)]
            for model in going:
                self._forget_names(model)
                swept.models.append(model.name)
                atomic.failpoint("cache.sweep.after_views")
            self._take_trees({tree for model in going for tree in census.trees_of(model)}, holds, swept)

    def _take_trees(self, candidates: set[str], holds: Holds, swept: Swept) -> None:
        """Those of them that nobody holds and no view leads to."""
        if not candidates:
            return
        shown = {view.tree for view in trees.views(self._store)} | holds.trees.keys()
        for tree in sorted(candidates - shown):
            swept.trees += self._discard(self._store.root / "trees" / tree, tree)
            atomic.failpoint("cache.sweep.after_tree")

    def _unused_since(self, model: Model) -> bool:
        try:
            return (self._store.root / "models" / model.hex).stat().st_mtime <= model.used_at
        except FileNotFoundError:
            return True

    def _forget_names(self, model: Model) -> None:
        for path in (*model.views, *model.refs):
            path.unlink(missing_ok=True)
        directory = self._store.root / "models" / model.hex
        if (directory / "verdicts").exists():
            for name in ("facts.json", "sources.json"):  # what was learnt of its bytes is worth keeping
                (directory / name).unlink(missing_ok=True)
            for name in ("proofs", "signatures"):
                self._discard(directory / name, f"{name}-{model.hex}")
        else:
            self._discard(directory, f"model-{model.hex}")

    def _orphans(self, census: Census) -> set[str]:
        """Trees that no view leads to: a pull was killed between them, or a view was lost."""
        owned = {tree for model in census.models.values() for tree in model.trees}
        now = self._now()
        return {
            tree for tree, made_at in census.trees_made_at.items() if tree not in owned and now - made_at >= self._grace
        }

    def _take_partial(self, partial: Partial, swept: Swept, released: list[Held]) -> None:
        try:
            held = self._store.lock(f"ingest-{partial.name}").acquire(timeout=0)
        except LockTimeout:
            return  # somebody works on it
        released.append(held)
        directory = self._store.root / "ingest" / partial.name
        if partial_written_at(directory) == partial.written_at and self._discard(directory, f"ingest-{partial.name}"):
            swept.partials += 1
            swept.bytes += partial.bytes
        atomic.failpoint("cache.sweep.after_partial")

    # -- items

    def _second_round(self, swept: Swept) -> None:
        census = self._reader.read(self._holds().models)
        candidates = order.garbage(census, self._now(), grace_seconds=self._grace)
        records = self._lost_records(census)
        free = [name for name in sorted(candidates) if not self._is_linked(name)]
        for some in _batches(free, ITEMS):
            self._take_items(census, some, swept)
        if records:
            with self._store.locks.exclusive():
                for hex_digits in records - self._holds().digests:  # left where a sweep was killed
                    self._forget_scopes(hex_digits)

    def _take_items(self, census: Census, names: Sequence[str], swept: Swept) -> None:
        with self._store.locks.exclusive():
            holds = self._holds()
            # Nothing in the census names them, so that of what is held only these can.
            held = self._named_since(census, holds)
            for name in names:
                if name in held or census.items[name].hex in holds.digests:
                    continue
                if self._discard(self._store.root / name, name.replace("/", "-")):
                    swept.items += 1
                    swept.bytes += census.items[name].bytes
                atomic.failpoint("cache.sweep.after_item")
                self._forget_scopes(census.items[name].hex)

    def _lost_records(self, census: Census) -> set[str]:
        """Scope records of digests of which nothing is here."""
        items = census.items
        there = {item.hex for names in census.unpacked.values() for item in map(items.__getitem__, names)}
        there |= {part.hex for part in census.partials.values()}
        with os.scandir(self._store.root / "scopes") as entries:
            return {
                entry.name
                for entry in entries
                if entry.name not in there
                and f"blobs/sha256/{entry.name}" not in items
                and f"blobs/sha512/{entry.name}" not in items
            }

    def _is_linked(self, name: str) -> bool:
        """Whether a file of the item has a second name. Asked before the lock: whoever links later makes a tree that is
        seen under it.
        """
        if not _linked(self._store.root / name):
            return False
        log.warning("%s is named by nothing known, but has links; it stays", name)
        return True

    def _named_since(self, census: Census, holds: Holds) -> set[str]:
        """What trees and models name that weren't there at the census."""
        found: set[str] = set()
        for name in os.listdir(self._store.root / "trees"):
            if not name.startswith(".") and name not in census.trees:
                found.update(trees.items(self._store, name))
        pulled = {hex_digits for hex_digits, _ in verdicts.pulled_models(self._store)}
        for hex_digits in pulled | holds.models.keys():
            known = census.models.get(hex_digits)
            if known is None or not known.has_facts:
                found.update(self._reader.named_by(census, hex_digits))
        return found

    def _forget_scopes(self, hex_digits: str) -> None:
        if any((self._store.root / "blobs" / algorithm / hex_digits).exists() for algorithm in ("sha256", "sha512")):
            return
        layer = self._store.root / "unpacked" / hex_digits
        if layer.exists():
            try:
                layer.rmdir()
            except OSError:
                return  # another version of it is there
        self._discard(self._store.root / "scopes" / hex_digits, f"scopes-{hex_digits}")

    # -- trash

    def _discard(self, path: Path, name: str) -> bool:
        """Into the trash by a rename; whether it was there."""
        try:
            atomic.rename_noreplace(path, self._bin / name)
        except FileNotFoundError:
            return False
        return True


def _linked(path: Path) -> bool:
    """Whether a file of the item has a second name: a tree shows it."""
    try:
        if path.is_file():
            return path.stat().st_nlink > 1
        with os.scandir(path / "files") as entries:
            return any(entry.stat(follow_symlinks=False).st_nlink > 1 for entry in entries)
    except FileNotFoundError:
        return False


def _batches(things: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """In pieces, with a pause between them: whoever waits for the store's lock gets it before the next section."""
    for first in range(0, len(things), size):
        if first:
            time.sleep(2 * LONGEST_DELAY_SECONDS)
        yield things[first : first + size]
