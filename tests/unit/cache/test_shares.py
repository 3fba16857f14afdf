"""Whose the cache is: quotas, and whose models go first when room is short."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.cache.collector import Collector
from modelmount.cache.shares import Shares
from modelmount.config import Cache
from modelmount.content.pulls import Claim, PullRecord
from modelmount.content.store import Store
from modelmount.errors import NoSpace
from tests.faults import oracle
from tests.unit.system.processes import mounted

from .shelf import Made, Shelf, content
from .test_admission import Node

KIB = 1 << 10
MIB = 1 << 20
HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(Store(tmp_path / "store"))


def put(shelf: Shelf, name: str, namespace: str, *, idle: float, size: int = 256 * KIB) -> Made:
    return shelf.put(name, {"w": content(name, size)}, idle=idle, namespace=namespace)


def collector(shelf: Shelf, **settings: object) -> Collector:
    cache = Cache(**{"grace_seconds": 60, **settings})  # type: ignore[arg-type]
    return Collector(shelf.store, lambda: cache)


def order(shelf: Shelf, **settings: object) -> list[tuple[str, str]]:
    """Everything that may go, by its short name, and why it goes before others."""
    plan = collector(shelf, **settings).plan(math.inf)
    return [(victim.name.split("/")[-1].removesuffix(":v1"), victim.first) for victim in plan.victims]


def used(shelf: Shelf) -> dict[str, int]:
    """In KiB, small documents left out."""
    shares: Shares = collector(shelf).shares()
    return {name: round(count / KIB / 64) * 64 for name, count in shares.parts.items()}


# -- whose


def test_a_model_is_of_who_used_it_last_while_nobody_holds_it(shelf: Shelf) -> None:
    made = put(shelf, "m", "a", idle=HOUR)
    assert used(shelf) == {"a": 256}
    lease = shelf.lease(made, "v1", namespace="b")
    assert used(shelf) == {"b": 256}
    shelf.lease(made, "v2", namespace="c")
    assert used(shelf) == {"b": 128, "c": 128}
    for volume in ("v1", "v2"):
        shelf.leases.remove(volume, f"/var/lib/kubelet/pods/{volume}/mount")
    assert lease.namespace == "b"
    assert used(shelf) == {"a": 256}


def test_a_live_pull_counts_for_its_namespace(shelf: Shelf) -> None:
    made = put(shelf, "m", "a", idle=HOUR)
    record = PullRecord.open(shelf.store, [Claim.of_manifest(made.manifest, made.scope, "b")])
    assert used(shelf) == {"b": 256}
    record.close()
    assert used(shelf) == {"a": 256}


def test_what_models_share_counts_once_and_in_equal_parts_for_namespaces(shelf: Shelf) -> None:
    common = content("common", 512 * KIB)
    for name, namespace in (("one", "a"), ("two", "a"), ("three", "b"), ("four", "")):
        shelf.put(name, {"common": common, "own": content(name, 256 * KIB)}, namespace=namespace)
    shares = collector(shelf).shares()
    third = 512 / 3
    assert {name: count / KIB for name, count in shares.parts.items()} == pytest.approx(
        {"a": third + 512, "b": third + 256, "": third + 256}, abs=64
    )
    assert sum(shares.parts.values()) == pytest.approx(collector(shelf).reader.read().bytes)
    # A quota doesn't tell what others have.
    assert {name: count / KIB for name, count in shares.charged.items()} == pytest.approx(
        {"a": 1024, "b": 768, "": 768}, abs=64
    )


# -- what goes first


def test_one_namespaces_junk_goes_before_anothers_working_set(shelf: Shelf) -> None:
    put(shelf, "daily", "careful", idle=20 * HOUR)
    for n in range(4):
        put(shelf, f"junk-{n}", "storm", idle=HOUR - n)
    # By last use alone the daily model would be the first to go.
    assert order(shelf) == [
        ("junk-0", "above its share"),
        ("junk-1", "above its share"),
        ("daily", ""),  # the rest of the storm is no more than its share
        ("junk-2", ""),
        ("junk-3", ""),
    ]


def test_what_is_unused_for_long_is_nobodys_working_set(shelf: Shelf) -> None:
    put(shelf, "forgotten", "careful", idle=8 * DAY)
    for n in range(4):
        put(shelf, f"daily-{n}", "busy", idle=HOUR - n)
    assert order(shelf)[0] == ("forgotten", "unused for long")
    assert order(shelf, working_set_seconds=30 * DAY)[0] == ("daily-0", "above its share")


def test_a_quota_is_a_namespaces_share(shelf: Shelf) -> None:
    put(shelf, "old", "large", idle=20 * HOUR)
    for n in range(4):
        put(shelf, f"daily-{n}", "large", idle=HOUR + n)
    put(shelf, "small", "small", idle=10 * HOUR)
    assert order(shelf)[0] == ("old", "above its share")
    by_quota = order(shelf, namespaces={"large": 2 * MIB, "small": 100 * KIB})
    assert by_quota[:2] == [("small", "above its share"), ("old", "")]


def test_a_model_of_two_namespaces_goes_first_only_where_both_have_too_much(shelf: Shelf) -> None:
    made = put(shelf, "shared", "a", idle=20 * HOUR)
    for namespace in ("a", "b"):
        shelf.lease(made, namespace, namespace=namespace)
    for n in range(3):
        put(shelf, f"junk-{n}", "a", idle=HOUR - n)
    # It is held, and what it takes counts half for each.
    assert used(shelf) == {"a": 128 + 768, "b": 128}
    shares = collector(shelf).shares()
    assert [shares.is_above(name) for name in "ab"] == [True, False]
    assert not shares.all_above(made.manifest.hex)
    assert [first for _, first in order(shelf)] == ["above its share", "above its share", ""]


def test_with_one_namespace_alone_the_order_is_as_ever(shelf: Shelf) -> None:
    put(shelf, "newer", "a", idle=HOUR)
    put(shelf, "older", "a", idle=9 * DAY)
    assert order(shelf) == [("older", ""), ("newer", "")]


def test_eviction_makes_room_out_of_the_namespace_that_has_too_much(shelf: Shelf) -> None:
    daily = put(shelf, "daily", "careful", idle=20 * HOUR)
    for n in range(4):
        put(shelf, f"junk-{n}", "storm", idle=HOUR - n)
    collecting = collector(shelf)
    with collecting.exclusively():
        swept = collecting.collect(400 * KIB)
    assert [name.split("/")[-1] for name in swept.models] == ["junk-0:v1", "junk-1:v1"]
    assert daily.items <= shelf.present()
    assert oracle.faults(shelf.store.root) == []


# -- quotas


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with mounted(tmp_path / "large", "tmpfs", "size=64m") as path:
        node = Node(path / "store")
        yield node
        for record in node.records:
            record.close()


@pytest.mark.mount
def test_a_pull_beyond_its_namespaces_quota_makes_room_among_its_own_only(node: Node) -> None:
    node.bound(namespace_bytes=10 * MIB)
    others = node.put("others", 4 * MIB, idle=9 * DAY, namespace="b")
    older = node.put("older", 4 * MIB, idle=7200, namespace="a")
    newer = node.put("newer", 4 * MIB, namespace="a")
    node.pull("next", 4 * MIB, namespace="a")
    assert node.shelf.present() == newer.items | others.items
    assert not older.tree.root.exists()
    node.pull("free", 30 * MIB)  # who has no namespace has no quota


@pytest.mark.mount
def test_what_its_quota_cannot_hold_is_refused_with_all_figures_and_nothing_goes(node: Node) -> None:
    node.bound(namespaces={"a": 10 * MIB})
    mounted_one = node.put("mounted", 6 * MIB, namespace="a")
    node.shelf.lease(mounted_one, namespace="a")
    idle = node.put("idle", 2 * MIB, namespace="a")
    with pytest.raises(NoSpace) as refused:
        node.pull("next", 9 * MIB, namespace="a")
    assert refused.value.message.startswith("9.4 MB more are needed for namespace 'a', which has 8.4 MB, of 10.5 MB")
    assert "2.1 MB of it could be evicted; the rest is held: 6.3 MB published" in refused.value.message
    assert node.shelf.present() == mounted_one.items | idle.items
    with pytest.raises(NoSpace, match=r"more than the 10\.5 MB that all models of namespace 'a' may take"):
        node.pull("huge", 11 * MIB, namespace="a")
    node.pull("other", 12 * MIB, namespace="b")


@pytest.mark.mount
def test_what_another_namespace_has_too_counts_in_full_and_room_is_made_of_names_alone(node: Node) -> None:
    node.bound(namespaces={"a": 10 * MIB})
    common = content("common", 6 * MIB)
    theirs = node.shelf.put("theirs", {"w": common}, idle=7200, namespace="b")
    ours = node.shelf.put("ours", {"w": common, "x": b"x"}, idle=7200, namespace="a")
    node.pull("next", 6 * MIB, namespace="a")
    assert node.shelf.present() == theirs.items
    assert ours.manifest.hex not in node.shelf.models()


@pytest.mark.mount
def test_a_changed_quota_counts_for_the_next_pull(node: Node) -> None:
    node.bound(namespaces={"a": 4 * MIB})
    with pytest.raises(NoSpace):
        node.pull("next", 6 * MIB, namespace="a")
    node.bound(namespaces={"a": 8 * MIB})
    node.pull("next", 6 * MIB, namespace="a")


@pytest.mark.mount
def test_two_pulls_of_a_namespace_that_exceed_its_quota_together_are_never_both_admitted(node: Node) -> None:
    node.bound(namespace_bytes=10 * MIB)
    outcomes: list[str] = []

    def pull(name: str, namespace: str) -> None:
        try:
            node.pull(name, 6 * MIB, namespace=namespace)
            outcomes.append(f"{namespace} admitted")
        except NoSpace as e:
            outcomes.append(f"{namespace} {'its other pulls will bring 6.3 MB' in e.message}")

    threads = [
        threading.Thread(target=pull, args=(name, namespace))
        for name, namespace in (("one", "a"), ("two", "a"), ("three", "a"), ("four", "b"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["a True", "a True", "a admitted", "b admitted"]
