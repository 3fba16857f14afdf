"""Which pulls may start, what goes for them, and what the others are told. On a file system of 16 MiB."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelmount.cache.admission import Admission
from modelmount.cache.collector import Collector
from modelmount.config import Cache, Limits, Settings
from modelmount.content import pins, pulls
from modelmount.content.pins import Pin
from modelmount.content.pulls import Claim, PullRecord
from modelmount.content.store import Store
from modelmount.errors import Cancelled, NoSpace
from modelmount.oci.digest import Digest
from modelmount.system.lock import FileLock, Held
from tests.fakes import opens
from tests.faults import oracle
from tests.unit.system.processes import mounted

from .shelf import Made, Shelf, content

MIB = 1 << 20
SCOPE = "ab" * 16
pytestmark = pytest.mark.mount


class Node:
    """A store on a small file system, and admission to it."""

    def __init__(self, root: Path) -> None:
        self.shelf = Shelf(Store(root))
        self.settings = Settings(root=str(root), kubelet_root="/proc", limits=Limits(free_bytes=0))
        self.collector = Collector(self.shelf.store, lambda: self.settings.cache)
        self.admission = Admission(self.collector, lambda: self.settings)
        self.records: list[PullRecord] = []
        self.bound()

    def bound(self, free_bytes: int = 0, **cache: object) -> None:
        """Change the configuration."""
        table = Cache(**{"free_inodes": 0, "grace_seconds": 60, "image_roots": (), **cache})  # type: ignore[arg-type]
        self.settings = Settings(
            root=self.settings.root, kubelet_root="/proc", limits=Limits(free_bytes=free_bytes), cache=table
        )

    def pull(self, name: str, size: int, *, cancelled: bool = False, namespace: str = "") -> PullRecord:
        """Admission of a model of one blob of so many bytes, of which nothing is here."""
        digest = Digest.of(name.encode())
        claim = Claim(digest.hex, "raw", f"{digest.hex}-{SCOPE}-raw", size)
        whole = Claim.of_manifest(Digest.of(f"manifest of {name}".encode()), SCOPE, namespace)
        record = PullRecord.open(self.shelf.store, [whole])
        self.records.append(record)
        self.admission.admit(record, [whole, claim], size, lambda: cancelled)
        return record

    def put(self, name: str, size: int, idle: float = 3600, namespace: str = "") -> Made:
        return self.shelf.put(name, {"w": content(name, size)}, idle=idle, namespace=namespace)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with mounted(tmp_path / "small", "tmpfs", "size=16m") as path:
        node = Node(path / "store")
        yield node
        for record in node.records:
            record.close()


def test_what_fits_is_admitted_and_nothing_goes(node: Node) -> None:
    made = node.put("a", 4 * MIB)
    record = node.pull("b", 8 * MIB)
    assert pulls.outstanding_bytes(node.shelf.store) == 8 * MIB
    assert node.shelf.present() == made.items
    record.close()
    assert pulls.outstanding_bytes(node.shelf.store) == 0


def test_room_is_made_in_order_and_only_as_much_as_needed(node: Node) -> None:
    older, newer = node.put("older", 4 * MIB, idle=7200), node.put("newer", 4 * MIB)
    node.pull("b", 10 * MIB)
    assert node.shelf.present() == newer.items
    assert not older.tree.root.exists()
    assert oracle.faults(node.shelf.store.root) == []


def test_two_that_do_not_fit_together_are_never_both_admitted(node: Node) -> None:
    outcomes: list[str] = []

    def pull(name: str) -> None:
        try:
            node.pull(name, 9 * MIB)
            outcomes.append("admitted")
        except NoSpace as e:
            outcomes.append(e.message)

    threads = [threading.Thread(target=pull, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("admitted") == 1
    assert all("other pulls hold 9.4 MB" in outcome for outcome in outcomes if outcome != "admitted")
    assert pulls.outstanding_bytes(node.shelf.store) == 9 * MIB


def test_nothing_goes_for_a_pull_that_would_not_fit_all_the_same(node: Node) -> None:
    held, free = node.put("held", 6 * MIB), node.put("free", 2 * MIB)
    pins.add(node.shelf.store, Pin(str(held.reference), str(held.manifest), 0))
    node.shelf.age(held, 3600)
    with pytest.raises(NoSpace) as caught:
        node.pull("b", 14 * MIB)
    message = caught.value.message
    assert "14.7 MB more are needed" in message
    assert "6.3 MB pinned" in message
    assert "2.1 MB could be evicted" in message
    assert node.shelf.present() == held.items | free.items
    assert len(message.encode()) <= 1024


def test_a_model_larger_than_the_budget_is_refused_at_once(node: Node) -> None:
    made = node.put("a", 1 * MIB)
    node.bound(max_bytes=4 * MIB)
    with pytest.raises(
        NoSpace, match=r"5\.2 MB are needed for the model, more than the 4\.2 MB that all models may take"
    ):
        node.pull("b", 5 * MIB)
    assert node.shelf.present() == made.items
    node.bound(share=0.25)
    with pytest.raises(NoSpace, match=r"more than the 4\.2 MB that all models may take"):
        node.pull("c", 5 * MIB)
    node.bound()
    with pytest.raises(NoSpace, match="more than this node's disk can ever hold"):
        node.pull("d", 17 * MIB)


def test_the_budget_counts_what_is_here_and_what_is_promised(node: Node) -> None:
    node.bound(max_bytes=8 * MIB)
    pinned = node.put("pinned", 3 * MIB)
    pins.add(node.shelf.store, Pin(str(pinned.reference), str(pinned.manifest), 0))
    first = node.pull("b", 3 * MIB)
    with pytest.raises(NoSpace, match=r"the cache may take 8\.4 MB"):
        node.pull("c", 2 * MIB)
    first.close()
    node.pull("c", 2 * MIB)


def test_a_budget_is_kept_by_eviction(node: Node) -> None:
    node.bound(max_bytes=8 * MIB)
    old = node.put("old", 5 * MIB)
    node.pull("b", 5 * MIB)
    assert not old.tree.root.exists()
    assert node.collector.reader.used_bytes() == 0


def test_changed_bounds_count_at_once(node: Node) -> None:
    node.bound(max_bytes=2 * MIB)
    with pytest.raises(NoSpace):
        node.pull("b", 3 * MIB)
    node.bound(max_bytes=4 * MIB)
    node.pull("b", 3 * MIB)


def test_the_high_watermark_is_not_passed(node: Node) -> None:
    node.bound(high_watermark=50)
    with pytest.raises(NoSpace, match="high_watermark is 50 %"):
        node.pull("b", 9 * MIB)
    node.pull("c", 7 * MIB)
    with pytest.raises(NoSpace):
        node.pull("d", 2 * MIB)


def test_what_must_stay_free_stays_free(node: Node) -> None:
    node.bound(free_bytes=10 * MIB)
    with pytest.raises(NoSpace, match=r"limits\.free_bytes keeps 10\.5 MB free"):
        node.pull("b", 7 * MIB)
    node.pull("b", 5 * MIB)


def test_what_the_model_has_already_does_not_go_for_the_rest_of_it(node: Node) -> None:
    blob, other = content("have", 5 * MIB), node.put("other", 5 * MIB)
    digest = Digest.of(blob)
    node.shelf.store.put_document(blob, digest, SCOPE)
    os.utime(node.shelf.store.root / "scopes" / digest.hex, (1, 1))
    missing = Digest.of(b"missing")
    record = PullRecord.open(node.shelf.store)
    node.records.append(record)
    claims = [
        Claim(each.hex, "raw", f"{each.hex}-{SCOPE}-raw", size)
        for each, size in ((digest, 5 * MIB), (missing, 9 * MIB))
    ]
    node.admission.admit(record, claims, 14 * MIB, lambda: False)
    assert node.shelf.store.blob_path(digest).exists()
    assert not other.tree.root.exists()


def test_a_pull_that_is_stopped_does_not_wait_for_its_turn(node: Node) -> None:
    node.put("old", 12 * MIB)
    with node.collector.exclusively(), pytest.raises(Cancelled):
        node.pull("b", 9 * MIB, cancelled=True)


def test_free_inodes_are_kept(tmp_path: Path) -> None:
    with mounted(tmp_path / "few", "tmpfs", "size=16m,nr_inodes=200") as path:
        node = Node(path / "store")
        many = node.shelf.put("many", {}, packed={f"f{n}": b"x" for n in range(70)}, idle=3600)
        free = os.statvfs(path).f_favail
        node.bound(free_inodes=free + 40)
        node.pull("b", MIB).close()
        assert os.statvfs(path).f_favail >= free + 40
        assert not many.tree.root.exists()
        node.bound(free_inodes=199)
        with pytest.raises(NoSpace, match=r"must stay free to be made; .* lower cache\.free_inodes"):
            node.pull("c", MIB)
        node.records[-1].close()


@dataclass
class Looks:
    """What is opened and listed by who holds the `space` lock in this process, and how often it was held."""

    holder: int = 0
    times: int = 0
    found: list[str] = field(default_factory=list)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    mine = Looks()
    acquire, release = FileLock.acquire, Held.release

    def acquired(lock: FileLock, **options: Any) -> Held:
        held = acquire(lock, **options)
        if lock.path.endswith("/space"):
            mine.holder, mine.times = threading.get_ident(), mine.times + 1
        return held

    def released(held: Held, **options: Any) -> None:
        if held.path.endswith("/space"):
            mine.holder = 0
        release(held, **options)

    monkeypatch.setattr(FileLock, "acquire", acquired)
    monkeypatch.setattr(Held, "release", released)
    with opens.watched(lambda path: mine.found.append(path) if mine.holder == threading.get_ident() else None):
        yield mine


def test_however_much_is_here_next_to_nothing_is_read_under_the_lock(node: Node, looks: Looks) -> None:
    node.bound(namespace_bytes=8 * MIB, max_bytes=12 * MIB)
    for name in "abcdef":
        node.put(name, 1000, namespace="team")
    node.pull("first", MIB, namespace="team")
    looks.found.clear()
    looks.times = 0
    node.pull("second", MIB, namespace="team")
    assert looks.times == 1
    root = node.shelf.store.root
    own = {f"{root}/locks/space", f"{root}/pulls/.{node.records[-1].id}.tmp"}
    assert set(looks.found) == own
    assert len(looks.found) <= 4


def test_what_was_decided_before_another_was_admitted_is_decided_again(node: Node) -> None:
    """The other one comes while the first look is under way, and is gone again before it is written down."""
    node.bound(namespace_bytes=10 * MIB)
    claim = Claim("cd" * 32, "raw", f"{'cd' * 32}-{SCOPE}-raw", 6 * MIB)
    whole = Claim.of_manifest(Digest.of(b"m"), SCOPE, "team")
    record = PullRecord.open(node.shelf.store, [whole])
    node.records.append(record)
    decided: list[tuple[int, int]] = []

    def quota(needed: int, promised: int) -> None:
        decided.append((needed, promised))
        if len(decided) == 1:
            node.pull("other", MIB, namespace="team")

    record.claim([whole, claim], room=lambda: 100 * MIB, quota=quota)
    assert decided == [(6 * MIB, 0), (6 * MIB, MIB)]


def test_whoever_is_always_late_makes_the_others_wait(node: Node) -> None:
    claim = Claim("cd" * 32, "raw", f"{'cd' * 32}-{SCOPE}-raw", MIB)
    record = PullRecord.open(node.shelf.store, [])
    node.records.append(record)
    rooms = 0

    def room() -> int:
        nonlocal rooms
        rooms += 1
        if rooms <= pulls.LOOKS:
            node.pull(f"other {rooms}", 1000)
        return 100 * MIB

    record.claim([claim], room=room)
    assert rooms == pulls.LOOKS + 1
    assert pulls.outstanding_bytes(node.shelf.store) == MIB + pulls.LOOKS * 1000
