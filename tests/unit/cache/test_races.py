"""Publishes, pulls and collections at the same time, in threads as in processes: what orders them is on the disk."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Container
from pathlib import Path

import pytest

from modelmount.cache import sweep
from modelmount.cache.collector import Collector
from modelmount.config import Cache
from modelmount.content import trash
from modelmount.content.pulls import PullRecord
from modelmount.pull import verdicts
from modelmount.snapshots import tree as trees
from tests.faults import oracle

from .shelf import Shelf, content

ROUNDS = 12
SHARED = {"base": content("base", 9000)}
MODELS = {name: {**SHARED, name: content(name, 5000)} for name in "abc"}


def test_what_was_published_is_whole_though_everything_is_collected_all_the_time(shelf: Shelf) -> None:
    failures: list[BaseException] = []
    done = threading.Event()
    counts = {"published": 0, "pulled": 0, "collected": 0}
    known = {name: shelf.put(name, files) for name, files in MODELS.items()}

    def pull(name: str) -> None:
        record = PullRecord.open(shelf.store)
        try:
            shelf.put(name, MODELS[name], record=record)
        finally:
            record.close()
        counts["pulled"] += 1

    def publish(name: str) -> None:
        made, volume = known[name], f"volume {name}"
        with shelf.store.locks.shared():
            tree = trees.find(shelf.store, made.scope, made.manifest, "")
            if tree is None:
                return
            verdicts.mark_used(shelf.store, made.manifest)
            lease = shelf.write_lease(made, volume)
        for path, data in made.files.items():
            assert (tree.root / path).read_bytes() == data
        counts["published"] += 1
        shelf.leases.remove(lease.volume_id, lease.target)

    def collect() -> None:
        # Each collector for itself, as the driver and the command line are.
        collector = Collector(shelf.store, lambda: Cache(grace_seconds=0), lambda: time.time() + 1)
        with collector.exclusively():
            counts["collected"] += len(collector.collect(math.inf).models)

    def repeat(work: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                work()
        except BaseException as e:  # noqa: BLE001 - shown below
            failures.append(e)
            done.set()

    works: list[Callable[[], None]] = [collect, collect]
    works += [lambda name=name: publish(name) for name in MODELS]  # type: ignore[misc]
    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        for n in itertools.count():
            if done.is_set() or (n >= ROUNDS and counts["published"] and counts["collected"]):
                break
            pull("abc"[n % 3])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert counts["published"] > 0
    assert counts["collected"] > 0
    assert oracle.faults(shelf.store.root) == []
    collect()
    assert shelf.present() == set()
    assert list((shelf.store.root / "trash").iterdir()) == []


def test_who_waits_for_the_store_gets_it_in_the_middle_of_a_long_sweep(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "MODELS", 2)
    monkeypatch.setattr(sweep, "ITEMS", 2)
    for n in range(20):
        shelf.put(f"m{n}", {"w": content(f"m{n}", 99)}, idle=3600)
    collector = Collector(shelf.store, lambda: Cache(grace_seconds=60))
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            with shelf.store.locks.shared():
                seen.append(len(shelf.models()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        collector.collect(math.inf)
    finally:
        done.set()
        thread.join()
    # Some were gone already, and some were still there.
    assert any(0 < count < 20 for count in seen)


def test_nobody_who_publishes_waits_for_the_bytes_that_a_sweep_deletes(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of 100 GB: while they are deleted everything but another collection goes on."""
    here = shelf.put("here", {"w": content("here", 99)})
    shelf.put("gone", {"w": content("gone", 99)}, idle=3600)
    collector = Collector(shelf.store, lambda: Cache(grace_seconds=60))
    deleting, go_on = threading.Event(), threading.Event()
    empty = trash.empty

    def slowly(directory: Path, *, sparing: Container[str] = ()) -> None:
        deleting.set()
        go_on.wait()
        empty(directory, sparing=sparing)

    monkeypatch.setattr(trash, "empty", slowly)

    def collect() -> None:
        with collector.exclusively():
            collector.collect(math.inf)

    sweeping = threading.Thread(target=collect)
    sweeping.start()
    try:
        assert deleting.wait(60)
        with shelf.store.locks.shared(cancelled=lambda: False):
            tree = trees.find(shelf.store, here.scope, here.manifest, "")
            assert tree == here.tree
            shelf.write_lease(here, "published meanwhile")
        again = shelf.put("again", {"w": content("again", 99)})
        assert (again.tree.root / "w").read_bytes() == again.files["w"]
        assert sweeping.is_alive()
    finally:
        go_on.set()
        sweeping.join()
    assert shelf.present() == here.items | again.items
    assert oracle.faults(shelf.store.root) == []
