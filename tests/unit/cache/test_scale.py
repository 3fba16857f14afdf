"""What a look at a large store costs, counted: nothing is read twice, and no more is held than must be."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from modelmount.cache import items, order
from modelmount.cache.census import Census, Reader
from modelmount.cache.collector import Collector
from modelmount.cache.holds import Holds
from modelmount.cache.items import Items
from modelmount.cli import cli
from modelmount.config import Cache
from modelmount.content.store import Store
from modelmount.snapshots import tree as trees
from tests.fakes import stock

from .shelf import Shelf, content

MODELS, FILES = 6, 20


@pytest.fixture
def full(tmp_path: Path) -> Store:
    assert list(stock.fill(tmp_path / "store", range(MODELS), FILES)) == list(range(MODELS))
    return Store(tmp_path / "store")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often documents, trees and blobs were looked at."""
    found: Counter[str] = Counter()

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            found[name] += 1
            return real(*args)

        return counted

    monkeypatch.setattr(Store, "read_document", counting("documents", Store.read_document))
    monkeypatch.setattr(trees, "items", counting("trees", trees.items))
    monkeypatch.setattr(Items, "_blob", counting("blobs", Items._blob))
    return found


def settle(store: Store) -> None:
    """As if the last blob had come a minute ago."""
    for room in ("blobs/sha256", "blobs/sha512"):
        os.utime(store.root / room, (time.time() - 60,) * 2)


def test_all_that_is_there_is_counted(full: Store) -> None:
    census = Reader(full).read()
    blobs = MODELS * (FILES + 1) + 1  # the manifests, and the config that all of them share
    assert len(census.models) == len(census.trees) == MODELS
    assert len(census.items) == blobs
    assert census.bytes == sum(os.lstat(full.root / name).st_blocks * 512 for name in census.items)
    assert census.unnamed == {}
    assert {len(census.names_of(model)) for model in census.models.values()} == {FILES + 2}


def test_what_never_changes_is_looked_at_once(full: Store, looks: Counter[str]) -> None:
    reader = Reader(full)
    reader.read()
    first = dict(looks)
    assert first == {"documents": MODELS, "trees": MODELS, "blobs": MODELS + 1}  # the manifests, and their config
    for _ in range(3):
        reader.read()
        reader.used_bytes()
    assert dict(looks) == first


@pytest.mark.parametrize("command", [["ls"], ["du"], ["status"], ["gc", "--dry-run"], ["gc", "--dry-run", "--all"]])
def test_a_command_looks_at_everything_once(full: Store, looks: Counter[str], command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--root", str(full.root)])
    assert result.exit_code == 0, result.output
    assert looks == {"documents": MODELS, "trees": MODELS, "blobs": MODELS + 1}


def test_what_a_tree_names_counts_only_while_it_is_there(full: Store) -> None:
    gone = next(name for name in Reader(full).read().items if (full.root / name).stat().st_nlink > 1)
    (full.root / gone).unlink()
    census = Reader(full).read()
    assert gone not in census.items
    assert Reader(full).used_bytes() == census.bytes
    assert {gone in names for names in census.trees.values()} == {True, False}


def test_a_damaged_tree_names_no_sizes_and_its_blobs_are_asked(full: Store, looks: Counter[str]) -> None:
    whole = Reader(full).read()
    tree = full.root / "trees" / min(whole.trees) / "tree.json"
    tree.chmod(0o600)
    tree.write_text("{")
    looks.clear()
    census = Reader(full).read()
    assert census.items == whole.items
    assert looks["blobs"] == MODELS + 1 + FILES


def test_a_name_is_one_string_wherever_it_stands(full: Store) -> None:
    census = Reader(full).read()
    own = {id(item.name) for item in census.items.values()}
    assert {id(name) for name in census.items} == own
    for names in (*census.trees.values(), *(model.items for model in census.models.values())):
        assert {id(name) for name in names} <= own


def test_a_size_of_many_files_is_held_once(full: Store) -> None:
    linked = [item.bytes for item in Reader(full).read().items.values() if (full.root / item.name).stat().st_nlink > 1]
    assert len(linked) >= MODELS * FILES
    assert len({id(size) for size in linked}) == len(set(linked))


def test_where_nothing_came_or_went_nothing_is_listed(full: Store) -> None:
    settle(full)
    reader = Reader(full)
    before = reader.read().items
    assert reader.read().items is before


def test_what_came_or_went_is_seen_at_once(full: Store) -> None:
    settle(full)
    reader = Reader(full)
    before = dict(reader.read().items)
    list(stock.fill(full.root, range(MODELS, MODELS + 1), FILES))
    more = reader.read().items
    assert len(more) == len(before) + FILES + 1
    settle(full)
    reader.read()
    gone = next(iter(before))
    (full.root / gone).unlink()
    assert reader.read().items.keys() == more.keys() - {gone}


def test_what_changed_within_the_same_tick_is_seen(full: Store) -> None:
    """A directory whose time is that of the moment is listed again, for its time may not change any more."""
    reader = Reader(full)
    before = reader.read().items
    blobs = full.root / "blobs/sha256"
    now = time.time_ns() + items.SETTLED_NS
    os.utime(blobs, ns=(now, now))
    reader.read()
    gone = next(iter(before))
    (full.root / gone).unlink()
    os.utime(blobs, ns=(now, now))
    assert reader.read().items.keys() == before.keys() - {gone}


def test_a_model_comes_into_a_census_once_its_manifest_is_there(shelf: Shelf) -> None:
    made = shelf.put("a", {"w": content("a", 9)}, packed={"x": content("x", 9)})
    manifest = shelf.store.blob_path(made.manifest)
    hidden = manifest.rename(manifest.with_name(".hidden"))
    reader = Reader(shelf.store)
    (model,) = reader.read().models.values()
    assert model.items == ()
    hidden.rename(manifest)
    (model,) = reader.read().models.values()
    assert set(model.items) == made.items


def test_a_sweep_that_need_not_make_room_orders_nothing(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def order_all(*args: object, **options: object) -> None:
        pytest.fail("models are put in order though nothing has to go")

    monkeypatch.setattr(order, "victims", order_all)
    assert Collector(full, Cache).collect(0).models == []


def test_what_can_go_is_summed_without_an_order(full: Store) -> None:
    collector = Collector(full, lambda: Cache(grace_seconds=60), lambda: time.time() + 3600)
    plan = collector.plan(math.inf)
    assert plan.evictable == plan.frees == plan.used


def test_models_with_the_same_content_are_users_of_one_set(full: Store) -> None:
    users = Reader(full).read().users()
    assert len({id(found) for found in users.values()}) == MODELS + 1
    assert sorted({len(found) for found in users.values()}) == [1, MODELS]


def test_an_empty_census_holds_nothing() -> None:
    assert order.evictable(Census(), Holds(), order.keeping(Census(), Holds()), time.time(), grace_seconds=0) == 0
