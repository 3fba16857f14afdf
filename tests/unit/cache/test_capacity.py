"""How large a model a node says that it can still take."""

from __future__ import annotations

from pathlib import Path

import msgspec

from modelmount.cache.capacity import Capacity
from modelmount.cache.collector import Collector
from modelmount.config import Settings
from modelmount.content.pulls import Claim, PullRecord
from modelmount.oci.digest import Digest

from .shelf import Shelf, content

HOUR, MIB = 3600.0, 1 << 20


def capacity(shelf: Shelf, tmp_path: Path, budget: int) -> Capacity:
    plain = {
        "root": str(shelf.store.root),
        "kubelet_root": str(tmp_path / "nowhere"),
        "limits": {"free_bytes": 0},
        "cache": {"max_bytes": budget, "grace_seconds": 60, "high_watermark": 99},
    }
    settings = msgspec.convert(plain, Settings)
    return Capacity(shelf.store, Collector(shelf.store, lambda: settings.cache), lambda: settings)


def test_an_empty_cache_has_its_budget(shelf: Shelf, tmp_path: Path) -> None:
    assert capacity(shelf, tmp_path, 8 * MIB)() == 8 * MIB


def test_what_may_go_counts_as_room_and_what_is_held_does_not(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put("idle", {"w": content("idle", MIB)}, idle=HOUR)
    assert capacity(shelf, tmp_path, 8 * MIB)() > 8 * MIB - MIB // 2
    held = shelf.put("held", {"w": content("held", 2 * MIB)}, idle=HOUR)
    shelf.lease(held)
    assert 5 * MIB < capacity(shelf, tmp_path, 8 * MIB)() <= 6 * MIB


def test_what_pulls_will_still_write_is_no_room(shelf: Shelf, tmp_path: Path) -> None:
    digest = Digest.of(b"to come")
    record = PullRecord.open(shelf.store)
    try:
        record.claim([Claim(digest.hex, "raw", f"{digest.hex}-{'ab' * 16}-raw", 3 * MIB)], room=lambda: 100 * MIB)
        assert capacity(shelf, tmp_path, 8 * MIB)() == 5 * MIB
    finally:
        record.close()


def test_a_cache_beyond_its_budget_has_nothing(shelf: Shelf, tmp_path: Path) -> None:
    held = shelf.put("held", {"w": content("held", 2 * MIB)}, idle=HOUR)
    shelf.lease(held)
    assert capacity(shelf, tmp_path, MIB)() == 0
