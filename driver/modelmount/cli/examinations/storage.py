"""The store's directory and file system, looked at without opening the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from modelmount.cache import bounds, ground
from modelmount.cli.examinations.finding import Finding, fail, ok, warn
from modelmount.config import Settings
from modelmount.content import versions
from modelmount.content.store import foreign_entry
from modelmount.errors import Precondition
from modelmount.pull.progress import human_bytes
from modelmount.system import disk, lock, mountinfo


def store(settings: Settings) -> Iterator[Finding]:
    """Whether the directory can be the store."""
    if settings.mode == "controller":
        return
    root = Path(settings.root)
    try:
        yield from _place(root)
    except OSError as e:
        text = f"the store {root} cannot be looked at: {e.strerror}"
        yield fail("store", text, "choose another root, or repair its file system")


def space(settings: Settings) -> Iterator[Finding]:
    """Room for models, clear of the kubelet's thresholds."""
    if settings.mode == "controller":
        return
    place = ground.nearest(Path(settings.root))
    there = msgspec.structs.replace(settings, root=str(place))
    now = bounds.read(there)
    free = disk.free_bytes(place)
    text = f"{human_bytes(free)} of {human_bytes(now.total)} are free at {place}"
    rule = f"pulls leave {human_bytes(now.keep_free)} free: {now.reason}"
    if now.largest == 0:
        yield fail("space", f"{text}: no pull can ever begin; {rule}", "change that, or choose a larger disk")
    elif free < now.keep_free:
        remedy = "free some; models go where that is enough (modelmount gc)"
        yield fail("space", f"{text}: no pull can begin; {rule}", remedy)
    else:
        yield ok("space", f"{text}; {rule}")
    for trouble in ground.budget(settings):
        yield _finding("space", trouble)
    missing = bounds.short_inodes(there, now)
    if missing:
        remedy = "make a file system with more inodes, or lower cache.free_inodes"
        yield warn("space", f"{missing} files more than now must stay free to be made at {place}", remedy)


def driver(settings: Settings) -> Iterator[Finding]:
    """Who serves this store now."""
    path = Path(settings.root) / "locks/driver"
    if settings.mode == "controller" or not path.exists():
        return
    holder = lock.holder(path)
    if holder is None:
        yield ok("driver", f"no driver runs on {settings.root}")
    else:
        yield ok("driver", f"{lock.named(holder)} serves {settings.root}")


def _place(root: Path) -> Iterator[Finding]:
    if not root.exists():
        place = ground.nearest(root)
        text = f"{root} isn't there yet; it is made at first use"
        yield (
            ok("store", text)
            if os.access(place, os.W_OK)
            else warn("store", f"{text}, but {place} can't be written", "run as root, or choose another root")
        )
    else:
        yield from _existing(root)
    found = [_finding("disk", trouble) for trouble in ground.file_system(root)]
    entry = mountinfo.mount_of(ground.nearest(root))
    yield from found or ([ok("disk", f"{root} is on {entry.fstype}")] if entry is not None else [])


def _existing(root: Path) -> Iterator[Finding]:
    for trouble in ground.directory(root):
        yield _finding("store", trouble)
        if trouble.fatal:
            return
    try:
        version = versions.found(root)
    except Precondition as e:
        problem, _, remedy = e.message.rpartition(": ")
        yield fail("store", problem, remedy)
        return
    if version is None:
        foreign = foreign_entry(root)
        if foreign is not None:
            text = f"{root} isn't a store, and isn't empty ({foreign!r} is in it)"
            yield fail("store", text, "choose a directory of the store's own as root")
        else:
            yield ok("store", f"{root} is empty; the store is made in it at first use")
        return
    if version < versions.VERSION:
        text = f"{root} has layout version {version}; it becomes {versions.VERSION}, in place, when the driver starts"
        yield ok("store", f"{text}, and older versions of modelmount refuse it then")
        return
    quarantined = os.listdir(root / "quarantine") if (root / "quarantine").exists() else []
    if quarantined:
        text = f"{len(quarantined)} things lie in {root}/quarantine: bytes that went bad on this disk"
        yield warn("store", text, "look at the disk's health, and recreate the pods that used them")
    yield ok("store", f"{root}, layout version {version}")


def _finding(name: str, trouble: ground.Trouble) -> Finding:
    return (fail if trouble.fatal else warn)(name, trouble.message, trouble.remedy)
