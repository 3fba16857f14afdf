"""The kubelet's thresholds, and what must stay free for their sake."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from modelmount.cache import thresholds
from modelmount.cache.thresholds import Demand, Thresholds
from modelmount.config import Cache, Settings

NOTHING = Thresholds(100, {}, "test")


def parse(text: str, tmp_path: Path) -> Thresholds:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return thresholds.read(Settings(kubelet_root=str(tmp_path)))


def demand(found: Thresholds, tmp_path: Path, **cache: object) -> Demand | None:
    settings = Settings(kubelet_root=str(tmp_path), cache=Cache(**{"image_roots": (), **cache}))  # type: ignore[arg-type]
    return thresholds.demand(found, settings, tmp_path)


def size(path: Path) -> int:
    figures = os.statvfs(path)
    return figures.f_blocks * figures.f_frsize


def test_without_a_configuration_the_defaults_count(tmp_path: Path) -> None:
    found = thresholds.read(Settings(kubelet_root=str(tmp_path)))
    assert found.image_gc_percent == 85
    assert found.signals["imagefs.available"] == ("15%",)
    assert "defaults" in found.source


@pytest.mark.parametrize("text", ["{", "[1, 2]", "just text", "\x00", "imageGCHighThresholdPercent: many"])
def test_what_is_no_configuration_leaves_the_defaults(text: str, tmp_path: Path) -> None:
    found = parse(text, tmp_path)
    assert (found.image_gc_percent, found.signals["nodefs.available"]) == (85, ("10%",))


def test_hard_thresholds_that_are_named_replace_the_defaults_and_soft_ones_count_too(tmp_path: Path) -> None:
    found = parse("evictionHard: {nodefs.available: 3%}\nevictionSoft: {nodefs.available: 10Gi}\n", tmp_path)
    assert found.signals == {"nodefs.available": ("3%", "10Gi")}
    assert found.source == str(tmp_path / "config.yaml")


def test_merged_defaults_and_json(tmp_path: Path) -> None:
    text = json.dumps({"evictionHard": {"nodefs.available": "3%"}, "mergeDefaultEvictionSettings": True})
    assert parse(text, tmp_path).signals["imagefs.available"] == ("15%",)
    assert parse(text, tmp_path).signals["nodefs.available"] == ("3%",)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("10%", 100.0),
        ("1Gi", float(1 << 30)),
        ("1500M", 1.5e9),
        ("2Ki", 2048.0),
        ("7k", 7000.0),
        ("12", 12.0),
        ("0%", 0.0),
        ("-1", 0.0),
        ("x%", 0.0),
        ("", 0.0),
    ],
)
def test_quantities(text: str, amount: float) -> None:
    assert thresholds._amount(text, 1000) == amount


def test_images_elsewhere_and_a_kubelet_elsewhere_demand_nothing(tmp_path: Path) -> None:
    found = Thresholds(85, {"imagefs.available": ("15%",)}, "test")
    assert demand(found, tmp_path, image_roots=("/proc",)) is None
    settings = Settings(kubelet_root="/proc", target_roots=["/proc"], cache=Cache(image_roots=("/proc",)))
    assert thresholds.demand(found, settings, tmp_path) is None


def test_the_strictest_threshold_counts_and_is_named_with_five_percent_to_spare(tmp_path: Path) -> None:
    total = size(tmp_path)
    found = demand(Thresholds(85, {"nodefs.available": ("10%",)}, "config.yaml"), tmp_path)
    assert found is not None
    assert found.bytes == pytest.approx(0.20 * total, abs=2)
    assert "deletes images where 85 %" in found.reason and "config.yaml" in found.reason
    found = demand(Thresholds(100, {"nodefs.available": ("30%", "1Ki")}, "config.yaml"), tmp_path)
    assert found is not None
    assert found.bytes == pytest.approx(0.35 * total, abs=2)
    assert "nodefs.available is below 30%" in found.reason


def test_with_the_kubelets_defaults_models_stop_at_eighty_percent(tmp_path: Path) -> None:
    settings = Settings(kubelet_root=str(tmp_path), cache=Cache(image_roots=(str(tmp_path),)))
    found = thresholds.demand(thresholds.read(settings), settings, tmp_path)
    assert found is not None
    assert found.bytes == pytest.approx(0.20 * size(tmp_path), abs=2)


def test_images_that_can_not_be_seen_are_where_the_kubelet_is(tmp_path: Path) -> None:
    only_images = Thresholds(100, {"imagefs.available": ("15%",)}, "test")
    assert demand(only_images, tmp_path) is not None
    assert demand(only_images, tmp_path, image_roots=("/proc",)) is None
    assert demand(only_images, tmp_path, image_roots=(str(tmp_path),)) is not None


def test_where_no_kubelet_is_its_thresholds_demand_nothing_unless_its_configuration_was_named(tmp_path: Path) -> None:
    found = Thresholds(85, {}, "test")
    images = (str(tmp_path),)
    nowhere = str(tmp_path / "kubelet")
    alone = Settings(kubelet_root=nowhere, cache=Cache(image_roots=images))
    assert thresholds.demand(found, alone, tmp_path) is None
    named = Settings(kubelet_root=nowhere, cache=Cache(image_roots=images, kubelet_config="/etc/kubelet.yaml"))
    assert thresholds.demand(found, named, tmp_path) is not None


def test_inodes_are_kept_free_too(tmp_path: Path) -> None:
    found = demand(Thresholds(85, {"nodefs.inodesFree": ("5%",)}, "test"), tmp_path)
    assert found is not None
    assert found.inodes == pytest.approx(os.statvfs(tmp_path).f_files * 0.10, abs=2)


def test_a_kubelet_without_thresholds_demands_nothing(tmp_path: Path) -> None:
    assert demand(NOTHING, tmp_path) is None


def test_the_directory_of_the_pods_says_where_the_kubelet_is(tmp_path: Path) -> None:
    """In a container only that one is the node's."""
    found = Thresholds(85, {}, "test")
    settings = Settings(kubelet_root="/proc", target_roots=[str(tmp_path)], cache=Cache(image_roots=()))
    assert thresholds.demand(found, settings, tmp_path) is not None
