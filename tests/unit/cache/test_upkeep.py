"""What happens to a store that nobody pulls into."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount import telemetry
from modelmount.cache import bounds
from modelmount.cache.collector import Collector
from modelmount.cache.upkeep import Upkeep
from modelmount.config import Cache, Limits, Live, Settings
from modelmount.content.store import Store
from modelmount.errors import InvalidRequest
from modelmount.system import disk
from tests.unit.system.processes import mounted

from .shelf import Shelf, content

MIB = 1 << 20
pytestmark = pytest.mark.mount


class Node:
    """A store on 16 MiB; `settings` stands for the file."""

    def __init__(self, root: Path) -> None:
        self.shelf = Shelf(Store(root))
        self.root = root
        self.settings = self.changed()
        self.live = Live(self.settings, self.reread)
        self.collector = Collector(self.shelf.store, lambda: self.live.cache)
        self.upkeep = Upkeep(self.shelf.store, self.collector, self.live, round_seconds=0.01)

    def reread(self) -> Settings:
        return self.settings

    def changed(self, free_bytes: int = 0, **cache: object) -> Settings:
        table = Cache(**{"free_inodes": 0, "grace_seconds": 60, "image_roots": (), **cache})  # type: ignore[arg-type]
        self.settings = Settings(
            root=str(self.root), kubelet_root="/proc", limits=Limits(free_bytes=free_bytes), cache=table
        )
        return self.settings

    def fill(self, *names: str) -> None:
        for n, name in enumerate(names):
            self.shelf.put(name, {"w": content(name, 3 * MIB)}, idle=3600 - 60 * n)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with mounted(tmp_path / "small", "tmpfs", "size=16m") as path:
        yield Node(path / "store")


def test_what_is_within_its_bounds_stays(node: Node) -> None:
    node.fill("a", "b", "c")
    node.upkeep.round()
    assert len(node.shelf.models()) == 3
    assert telemetry.cache_used_bytes._value.get() >= 9 * MIB
    assert 0 < telemetry.cache_free_bytes._value.get() < 7 * MIB


def test_a_lowered_budget_counts_without_a_restart(node: Node) -> None:
    node.fill("a", "b", "c")
    node.changed(max_bytes=7 * MIB)
    node.upkeep.round()
    assert len(node.shelf.models()) == 2
    assert node.collector.reader.used_bytes() <= 7 * MIB


def test_bytes_that_shall_stay_free_count_without_a_restart(node: Node) -> None:
    node.fill("a", "b", "c")
    node.changed(free_bytes=8 * MIB)
    node.upkeep.round()
    assert len(node.shelf.models()) == 2
    assert disk.free_bytes(node.root) >= 8 * MIB


def test_when_others_fill_the_disk_models_go_down_to_the_low_watermark(node: Node) -> None:
    node.changed(high_watermark=80, low_watermark=60)
    node.fill("a", "b", "c")
    node.upkeep.round()
    assert len(node.shelf.models()) == 3
    (node.root.parent / "images").write_bytes(content("images", 4 * MIB))
    node.upkeep.round()
    assert len(node.shelf.models()) == 1


def test_a_mistake_in_the_configuration_changes_nothing_and_is_said_once(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.fill("a")

    def mistaken() -> Settings:
        raise InvalidRequest("the configuration has mistakes")

    node.live._reread = mistaken
    node.upkeep.round()
    node.upkeep.round()
    assert [r.getMessage() for r in caplog.records if "doesn't count" in r.getMessage()] == [
        "the changed configuration doesn't count: the configuration has mistakes"
    ]
    assert len(node.shelf.models()) == 1


def test_the_reason_for_the_bounds_is_said_when_they_change(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    node.upkeep.round()
    node.upkeep.round()
    node.changed(high_watermark=70)
    node.upkeep.round()
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("bounds of the cache")]
    assert len(said) == 2
    assert said[1] == "bounds of the cache: cache.high_watermark is 70 %"


def test_it_goes_on_after_a_failure_and_ends(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    visits = 0
    enough = threading.Event()

    def failing(settings: Settings) -> bounds.Bounds:
        nonlocal visits
        visits += 1
        if visits == 3:
            enough.set()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(bounds, "read", failing)
    with node.upkeep:
        assert enough.wait(60)
