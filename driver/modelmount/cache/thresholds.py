"""The kubelet's thresholds: what of a file system must stay free so that it neither deletes images nor evicts pods.

Read from the kubelet's own configuration (kubelet.config.k8s.io/v1beta1, KubeletConfiguration), in YAML or JSON; its
documented defaults hold where that says nothing or isn't there.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelmount.config import Settings

log = logging.getLogger(__name__)

CLEARANCE = 0.05
"""How far models stay clear of a threshold, as a part of the file system."""
MAX_CONFIG_BYTES = 1 << 20
IMAGE_GC_PERCENT = 85
"""imageGCHighThresholdPercent, by default."""
EVICTION_HARD: Mapping[str, str] = {
    "nodefs.available": "10%",
    "imagefs.available": "15%",
    "nodefs.inodesFree": "5%",
    "imagefs.inodesFree": "5%",
}
"""evictionHard, by default; a configuration that names any of them replaces all."""
_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>[kKMGTPE]i?|)", re.ASCII)
_UNITS = "kMGTPE"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the kubelet is told: use in percent at which it deletes images (100: never), and its eviction signals with
    their quantities, the earlier of hard and soft. `source` is the file, or says that these are defaults.
    """

    image_gc_percent: int
    signals: Mapping[str, tuple[str, ...]]
    source: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What must stay free on one file system, and whose rule it is, as the rest of a sentence."""

    bytes: int
    inodes: int
    reason: str


def read(settings: Settings) -> Thresholds:
    """The kubelet's thresholds on this node. A configuration that can't be read is logged, and the defaults hold."""
    named = settings.cache.kubelet_config
    path = Path(named or f"{settings.kubelet_root}/config.yaml")
    try:
        with path.open("rb") as file:
            document = yaml.safe_load(file.read(MAX_CONFIG_BYTES))
    except FileNotFoundError:
        if named:
            log.warning("there is no kubelet configuration %s; its defaults count", path)
        return Thresholds(IMAGE_GC_PERCENT, _signals(EVICTION_HARD), "the kubelet's defaults")
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        log.warning("cannot read the kubelet's configuration %s: %s; its defaults count", path, e)
        return Thresholds(IMAGE_GC_PERCENT, _signals(EVICTION_HARD), "the kubelet's defaults")
    return parse(document, str(path))


def parse(document: object, source: str) -> Thresholds:
    """The thresholds in a decoded configuration; values of another type than they should have count as absent."""
    fields = document if isinstance(document, dict) else {}
    percent = fields.get("imageGCHighThresholdPercent")
    hard = _texts(fields.get("evictionHard"))
    if not hard or fields.get("mergeDefaultEvictionSettings") is True:
        hard = {**EVICTION_HARD, **hard}
    return Thresholds(
        percent if type(percent) is int and 0 < percent <= 100 else IMAGE_GC_PERCENT,
        _signals(hard, _texts(fields.get("evictionSoft"))),
        source,
    )


def demand(thresholds: Thresholds, settings: Settings, root: Path) -> Demand | None:
    """What must stay free on the file system of `root` for the kubelet's sake; None when the kubelet and its images are
    elsewhere, or where there is neither a directory of a kubelet nor a configuration that was named. Raises OSError
    when `root` can't be asked.

    Where no image directory can be seen from here, images count as being where the kubelet is.
    """
    device = root.stat().st_dev
    kubelet = _device(*map(str, settings.publish_roots), settings.kubelet_root)
    if kubelet is None and not settings.cache.kubelet_config:
        return None  # this machine is no node: images that lie here are some other program's
    images = {found for path in settings.cache.image_roots if (found := _device(path)) is not None}
    with_kubelet = kubelet == device
    with_images = device in images or (not images and with_kubelet)
    if not with_kubelet and not with_images:
        return None
    figures = os.statvfs(root)
    total, inodes = figures.f_blocks * figures.f_frsize, figures.f_files
    demands = list(_demands(thresholds, total, nodefs=with_kubelet, imagefs=with_images))
    if not demands:
        return None
    free, why = max(demands)
    signals = [s for on, s in ((with_kubelet, "nodefs.inodesFree"), (with_images, "imagefs.inodesFree")) if on]
    few = max((_amount(text, inodes) for s in signals for text in thresholds.signals.get(s, ())), default=0)
    return Demand(
        bytes=math.ceil(free + CLEARANCE * total),
        inodes=math.ceil(few + CLEARANCE * inodes) if few else 0,
        reason=f"{why} ({thresholds.source}), and models stay {CLEARANCE:.0%} clear of that",
    )


def _demands(thresholds: Thresholds, total: int, *, nodefs: bool, imagefs: bool) -> Iterator[tuple[float, str]]:
    """Bytes that must be free for each threshold that applies, with its words."""
    percent = thresholds.image_gc_percent
    if imagefs and percent < 100:
        yield total * (100 - percent) / 100, f"the kubelet deletes images where {percent} % of this disk are used"
    for applies, signal in ((nodefs, "nodefs.available"), (imagefs, "imagefs.available")):
        for text in thresholds.signals.get(signal, ()) if applies else ():
            amount = _amount(text, total)
            if amount:
                yield amount, f"the kubelet evicts pods where {signal} is below {text}"


def _amount(text: str, total: int) -> float:
    """A percentage of `total`, or a Kubernetes quantity; 0 for neither, as for a threshold that is switched off."""
    if text.endswith("%"):
        number = text[:-1]
        return total * float(number) / 100 if re.fullmatch(r"[0-9]+(\.[0-9]+)?", number) else 0.0
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return 0.0
    unit = match["unit"]
    power: int = _UNITS.find(unit[:1].replace("K", "k")) + 1 if unit else 0
    return float(match["number"]) * float((1024 if unit.endswith("i") else 1000) ** power)


def _signals(*tables: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    names = {name for table in tables for name in table}
    return {name: tuple(table[name] for table in tables if name in table) for name in sorted(names)}


def _texts(value: object) -> dict[str, str]:
    table: Mapping[Any, Any] = value if isinstance(value, dict) else {}
    return {k: v for k, v in table.items() if isinstance(k, str) and isinstance(v, str)}


def _device(*paths: str) -> int | None:
    """The file system of the first of these paths that is there."""
    for path in paths:
        try:
            return Path(path).stat().st_dev
        except OSError:
            continue
    return None
