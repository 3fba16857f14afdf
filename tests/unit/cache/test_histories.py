"""Random histories of a store: models come, are published, pinned, pulled and given up, and collections run between.

Whatever happened, a collection leaves what is held whole, and one of everything leaves nothing else.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelmount.cache.collector import Collector
from modelmount.config import Cache
from modelmount.content import debris, pins
from modelmount.content.pins import Pin
from modelmount.content.pulls import Claim, PullRecord
from modelmount.content.store import Store
from modelmount.snapshots import tree as trees
from tests.faults import oracle

from .shelf import Made, Shelf, content

NAMES = [f"m{n}" for n in range(5)]
FILES = {f"f{n}": content(f"f{n}", 5000 * n + 1) for n in range(5)}
"""A few files, so that models share them."""

names = st.sampled_from(NAMES)
some_files = st.sets(st.sampled_from(sorted(FILES)), max_size=3)


class Histories(RuleBasedStateMachine):
    """One store."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="mm-cache-"))
        self.shelf = Shelf(Store(self.root / "store"))
        self.collector = Collector(self.shelf.store, lambda: Cache(grace_seconds=0), lambda: time.time() + 1)
        self.known: dict[str, Made] = {}
        self.published: dict[str, Made] = {}
        self.pinned: dict[str, Made] = {}
        self.pulling: dict[str, tuple[Made, PullRecord]] = {}
        self.claimed: set[str] = set()

    def teardown(self) -> None:
        for _, record in self.pulling.values():
            record.close()
        shutil.rmtree(self.root)

    # -- models come and are used

    @rule(name=names, raw=some_files, packed=some_files)
    def pull(self, name: str, raw: set[str], packed: set[str]) -> None:
        if not raw and not packed:
            return
        files = {path: FILES[path] for path in raw}
        archived = {f"packed/{path}": FILES[path] for path in packed}
        self.known[name] = self.shelf.put(name, files, packed=archived)

    @precondition(lambda self: self.known)
    @rule(name=names)
    def publish(self, name: str) -> None:
        made = self.known.get(name)
        if made is not None and self.is_here(made):
            self.shelf.lease(made, name)
            self.published[name] = made

    @rule(name=names)
    def unpublish(self, name: str) -> None:
        if self.published.pop(name, None) is not None:
            self.shelf.leases.remove(name, f"/var/lib/kubelet/pods/{name}/mount")

    @precondition(lambda self: self.known)
    @rule(name=names)
    def pin(self, name: str) -> None:
        made = self.known.get(name)
        if made is not None and self.is_here(made):
            pins.add(self.shelf.store, Pin(str(made.reference), str(made.manifest), time.time()))
            self.pinned[f"{made.reference}@{made.manifest}"] = made

    @rule(name=names)
    def unpin(self, name: str) -> None:
        for gone in pins.remove(self.shelf.store, f"registry.example.com/llm/{name}:v1"):
            del self.pinned[f"{gone.reference}@{gone.manifest}"]

    @precondition(lambda self: self.known)
    @rule(name=names)
    def begin_a_pull(self, name: str) -> None:
        made = self.known.get(name)
        if made is not None and self.is_here(made) and name not in self.pulling:
            claim = Claim.of_manifest(made.manifest, made.scope)
            self.pulling[name] = (made, PullRecord.open(self.shelf.store, [claim]))

    @rule(name=names)
    def end_a_pull(self, name: str) -> None:
        if name in self.pulling:
            self.pulling.pop(name)[1].close()

    @rule(seed=st.integers(0, 3), size=st.integers(1, 20_000))
    def interrupt_a_download(self, seed: int, size: int) -> None:
        self.shelf.partial(f"partial {seed}", size)

    # -- and go

    @rule(wanted=st.integers(0, 60_000))
    def collect_some(self, wanted: int) -> None:
        before = self.collector.plan(wanted)
        swept = self.collector.collect(wanted)
        assert swept.bytes >= min(wanted, before.evictable)
        assert swept.bytes == before.frees

    @rule()
    def collect_everything(self) -> None:
        self.collector.collect(math.inf)
        held = self.held()
        kept: set[str] = set().union(*(made.items for made in held))
        assert self.shelf.present() == kept
        assert self.shelf.models() == {made.manifest.hex for made in held}
        assert {path.name for path in (self.shelf.store.root / "trees").iterdir()} == {made.tree.id for made in held}
        assert list((self.shelf.store.root / "ingest").iterdir()) == []
        assert list((self.shelf.store.root / "trash").iterdir()) == []
        scopes = {path.name for path in (self.shelf.store.root / "scopes").iterdir()}
        assert scopes == {item.split("/")[2 if item.startswith("blobs") else 1] for item in kept}

    @rule()
    def start_again(self) -> None:
        debris.clear(self.shelf.store)
        self.collector = Collector(self.shelf.store, lambda: Cache(grace_seconds=0), lambda: time.time() + 1)

    @invariant()
    def what_is_held_is_whole(self) -> None:
        for made in self.held():
            assert made.items <= self.shelf.present()
            assert self.is_here(made)
            for path, data in made.files.items():
                assert (made.tree.root / path).read_bytes() == data

    @invariant()
    def what_stands_is_whole(self) -> None:
        assert oracle.faults(self.shelf.store.root) == []

    def is_here(self, made: Made) -> bool:
        return trees.find(self.shelf.store, made.scope, made.manifest, "") is not None

    def held(self) -> list[Made]:
        """Directly, or because a held tree is theirs too."""
        direct = [*self.published.values(), *self.pinned.values(), *(made for made, _ in self.pulling.values())]
        shown = {made.tree.id for made in self.published.values()}
        return direct + [made for made in self.ever.values() if made.tree.id in shown and self.is_here(made)]

    @property
    def ever(self) -> dict[str, Made]:
        return {str(made.manifest): made for made in self.known.values()}


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=12, stateful_step_count=25)
