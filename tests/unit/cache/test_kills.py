"""SIGKILL at every step of a sweep: what is held stays whole, nothing that stands is torn, the next sweep takes the
rest.
"""

from __future__ import annotations

import hashlib
import math
import re
import signal
from pathlib import Path

import pytest

from modelmount import cache
from modelmount.cache import quarantine
from modelmount.cache.collector import Collector
from modelmount.config import Cache
from modelmount.content import debris
from modelmount.snapshots import tree as trees
from tests.faults import oracle
from tests.unit.system.processes import start, stop

from .shelf import Made, Shelf, content

POINTS = sorted(
    set(
        re.findall(
            r'failpoint\("(cache\.[a-z_.]+)"',
            "".join(path.read_text() for path in Path(cache.__file__).parent.glob("*.py")),
        )
    )
)

SWEEPS = [point for point in POINTS if point.startswith("cache.sweep.")]
QUARANTINES = [point for point in POINTS if point.startswith("cache.quarantine.")]

COLLECT = """
import math, sys
from pathlib import Path
from modelmount.cache.collector import Collector
from modelmount.config import Cache
from modelmount.content.store import Store
Collector(Store(Path(sys.argv[1])), lambda: Cache(grace_seconds=60)).collect(math.inf)
"""


def filled(shelf: Shelf) -> Made:
    """Models that share and one that is held, an interrupted download; the held one."""
    shared = content("shared", 5000)
    for name in ("a", "b"):
        shelf.put(name, {"base": shared, name: content(name, 99)}, packed={"x": b"1", f"y/{name}": b"2"}, idle=3600)
        shelf.partial(f"rest of {name}", 5000, idle=3600)
    held = shelf.put("held", {"base": shared}, packed={"h": b"h"}, idle=3600)
    shelf.lease(held)
    return held


def test_every_step_is_killed_at() -> None:
    assert len(SWEEPS) >= 5
    assert len(QUARANTINES) >= 2
    assert set(SWEEPS + QUARANTINES) == set(POINTS)


@pytest.mark.parametrize("visit", [0, 1])
@pytest.mark.parametrize("point", SWEEPS)
def test_killed_there_what_is_held_is_whole_and_the_next_sweep_takes_the_rest(
    shelf: Shelf, point: str, visit: int
) -> None:
    held = filled(shelf)
    process = start(COLLECT, str(shelf.store.root), env={"MODELMOUNT_FAILPOINTS": f"{point}={visit}*off->kill"})
    try:
        status = process.wait(timeout=60)
    finally:
        stop(process)
    assert status == -signal.SIGKILL
    assert oracle.faults(shelf.store.root) == []
    debris.clear(shelf.store)
    assert oracle.half_made(shelf.store.root) == []
    Collector(shelf.store, lambda: Cache(grace_seconds=60)).collect(math.inf)
    assert oracle.faults(shelf.store.root) == []
    assert shelf.present() == held.items
    assert shelf.models() == {held.manifest.hex}
    assert {path.name for path in (shelf.store.root / "trees").iterdir()} == {held.tree.id}
    assert (held.tree.root / "base").read_bytes() == held.files["base"]
    kept = {item.split("/")[2 if item.startswith("blobs") else 1] for item in held.items}
    assert {path.name for path in (shelf.store.root / "scopes").iterdir()} == kept
    for room in ("ingest", "trash"):
        assert list((shelf.store.root / room).iterdir()) == []


ISOLATE = """
import sys
from pathlib import Path
from modelmount.cache import quarantine
from modelmount.content.store import Store
quarantine.put(Store(Path(sys.argv[1])), sys.argv[2], "a test says so")
"""


@pytest.mark.parametrize("point", QUARANTINES)
def test_killed_on_the_way_to_quarantine_nothing_is_torn_and_the_next_start_ends_there(
    shelf: Shelf, point: str
) -> None:
    held = filled(shelf)
    (bad,) = (item for item in held.items if item.startswith("unpacked/"))
    process = start(ISOLATE, str(shelf.store.root), bad, env={"MODELMOUNT_FAILPOINTS": f"{point}=kill"})
    try:
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        stop(process)
    assert oracle.faults(shelf.store.root) == []
    debris.clear(shelf.store)
    quarantine.finish(shelf.store)
    assert len(list((shelf.store.root / "quarantine").iterdir())) == 1
    assert not (shelf.store.root / bad).exists()
    assert trees.find(shelf.store, held.scope, held.manifest, "") is None
    assert {path.name for path in (shelf.store.root / "quarantine").glob("*/*/root/base")} == {"base"}
    assert oracle.faults(shelf.store.root) == []


def test_what_was_collected_before_it_came_into_quarantine_may_come_again(shelf: Shelf) -> None:
    shelf.put("a", {"base": content("base", 5000)}, idle=3600)
    bad = f"blobs/sha256/{hashlib.sha256(content('base', 5000)).hexdigest()}"
    process = start(ISOLATE, str(shelf.store.root), bad, env={"MODELMOUNT_FAILPOINTS": f"{QUARANTINES[-1]}=kill"})
    try:
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        stop(process)
    (shelf.store.root / bad).unlink()
    quarantine.finish(shelf.store)
    (shelf.store.root / bad).write_bytes(b"another")
    quarantine.finish(shelf.store)
    assert (shelf.store.root / bad).exists()


def test_a_bad_item_that_somebody_removed_from_quarantine_is_not_looked_for_again(shelf: Shelf) -> None:
    shelf.put("a", {"base": content("base", 5000)}, idle=3600)
    bad = f"blobs/sha256/{hashlib.sha256(content('base', 5000)).hexdigest()}"
    put = quarantine.put(shelf.store, bad, "a test says so")
    assert put is not None
    (put.place / bad.replace("/", "-")).unlink()
    again = shelf.put("a", {"base": content("base", 5000)}, idle=3600)
    quarantine.finish(shelf.store)
    assert (shelf.store.root / bad).exists()
    assert (again.tree.root / "base").exists()


def test_items_of_one_second_have_places_of_their_own(shelf: Shelf) -> None:
    places = set()
    for _ in range(3):
        made = shelf.put("a", {"base": content("base", 5000)}, idle=3600)
        bad = f"blobs/sha256/{hashlib.sha256(content('base', 5000)).hexdigest()}"
        assert bad in made.items
        put = quarantine.put(shelf.store, bad, "a test says so")
        assert put is not None
        places.add(put.place)
    assert len(places) == 3
