"""Quarantine: bytes that went bad are moved out of everybody's way, with every tree that shows them, never deleted
under a mount. Running pods keep what they have, and their volumes report it; new publishes fetch good bytes.

    quarantine/<seconds>-<hex>/why.json          the item and what is wrong with it; written first, and then
                                                 called moved.json
    quarantine/<seconds>-<hex>/<tree id>/        as it was under trees/
    quarantine/<seconds>-<hex>/blobs-sha256-<hex> or unpacked-<hex>-<rules>
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

import msgspec

from modelmount.content import trash
from modelmount.content.store import Store
from modelmount.errors import ModelMountError
from modelmount.snapshots import tree as trees
from modelmount.system import atomic, mount
from modelmount.volumes import ours
from modelmount.volumes.leases import Lease, Leases

log = logging.getLogger(__name__)

KEEP_SECONDS = 86400.0
"""How long it stays at least, for whoever looks into it."""
_WHY: Final = "why.json"
_MOVED: Final = "moved.json"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One item that was moved, the trees that went with it, and the publications that show them."""

    item: str
    place: Path
    trees: tuple[str, ...]
    leases: tuple[Lease, ...]


class _Why(msgspec.Struct, frozen=True):
    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies in quarantine: the item's name as it was, what is wrong with it, and where it is now."""

    item: str
    reason: str
    place: Path


def entries(store: Store) -> Iterator[Entry]:
    """What lies there, the oldest first. Raises OSError."""
    for place in sorted((store.root / "quarantine").iterdir()):
        for name in (_MOVED, _WHY):
            with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
                why = msgspec.json.decode(atomic.read_file(place / name), type=_Why)
                yield Entry(why.item, why.reason, place)
                break


def put(store: Store, item: str, reason: str) -> Quarantined | None:
    """Move the item (its name below the root) and every tree that shows it; None when it is gone. Every publication of
    it is named in the log. Raises OSError. Where a kill ends it, `finish` goes on.
    """
    with store.locks.exclusive():
        if not (store.root / item).exists():
            return None
        place = _new_place(store, item)
        atomic.write_file(place / _WHY, msgspec.json.encode(_Why(item, reason)))
        atomic.fsync_directory(place.parent)  # before anything is moved into it
        atomic.failpoint("cache.quarantine.after_why")
        bad = _move(store, place, item)
    return _moved(store, place, _Why(item, reason), bad)


def finish(store: Store) -> None:
    """Go on where a kill ended a `put`: until then new pods could get the bad item. Raises OSError."""
    for place in sorted((store.root / "quarantine").iterdir()):
        try:
            why = msgspec.json.decode(atomic.read_file(place / _WHY), type=_Why)
        except (FileNotFoundError, msgspec.DecodeError):
            continue  # killed before it was written: nothing had been moved
        with store.locks.exclusive():
            if not (place / _WHY).exists():
                continue  # somebody else was quicker
            if (place / _name(why.item)).exists():
                (place / _WHY).rename(place / _MOVED)
                continue
            if not (store.root / why.item).exists():
                (place / _WHY).unlink(missing_ok=True)  # collected meanwhile; what comes under its name is another
                continue
            bad = _move(store, place, why.item)
        _moved(store, place, why, bad)


def release(store: Store, *, keep_seconds: float = KEEP_SECONDS) -> int:
    """Delete what has been in quarantine long enough and nobody shows any more; how many entries went. Raises
    OSError.
    """
    gone = []
    with store.locks.exclusive():
        used = {tree.parts[1] for tree in ours.trees_in_use(store.root) if tree.parts[0] == "quarantine"}
        for place in (store.root / "quarantine").iterdir():
            if place.name in used or time.time() - place.stat().st_mtime < keep_seconds or showing(store, place):
                continue
            target = store.root / "trash" / f"{place.name}.{secrets.token_hex(8)}"
            atomic.rename_noreplace(place, target)
            gone.append(target)
    if gone:
        atomic.fsync_directory(store.root / "quarantine")
    for path in gone:
        trash.delete(path)
    return len(gone)


def _move(store: Store, place: Path, item: str) -> list[str]:
    """Move the trees, then the item; which trees. The caller holds the exclusive lock."""
    bad = [path.name for path in (store.root / "trees").glob("[0-9a-f]*") if _shows(store, path.name, item)]
    for view in trees.views(store):
        if view.tree in bad:
            view.path.unlink(missing_ok=True)
    atomic.failpoint("cache.quarantine.after_views")
    for identity in bad:
        atomic.rename_noreplace(store.root / "trees" / identity, place / identity)
        atomic.failpoint("cache.quarantine.after_tree")
    atomic.rename_noreplace(store.root / item, place / _name(item))
    atomic.failpoint("cache.quarantine.after_item")
    (place / _WHY).rename(place / _MOVED)
    return bad


def _moved(store: Store, place: Path, why: _Why, bad: list[str]) -> Quarantined:
    """Make it durable and say who is concerned."""
    for directory in (place, place.parent, store.root / "trees", (store.root / why.item).parent):
        atomic.fsync_directory(directory)
    shown = showing(store, place)
    log.error(
        "%s went bad on this node's disk and is in quarantine: %s",
        why.item,
        why.reason,
        extra={"fields": {"place": str(place), "volumes": [lease.volume_id for lease in shown]}},
    )
    for lease in shown:
        log.error(
            "volume %s shows files that went bad; recreate its pod",
            lease.volume_id,
            extra={"fields": {"volume": lease.volume_id, "target": lease.target, "pod": lease.pod_uid}},
        )
    return Quarantined(why.item, place, tuple(bad), tuple(shown))


def _new_place(store: Store, item: str) -> Path:
    """A directory with a name of its own; the caller holds the exclusive lock."""
    parts = PurePath(item).parts
    hex_digits = parts[2] if parts[0] == "blobs" else parts[1]
    seconds = int(time.time())
    while True:
        place = store.root / "quarantine" / f"{seconds}-{hex_digits}"
        try:
            place.mkdir(mode=0o700)
        except FileExistsError:
            seconds += 1
        else:
            return place


def _name(item: str) -> str:
    return item.replace("/", "-")


def _shows(store: Store, tree: str, item: str) -> bool:
    try:
        return item in trees.items(store, tree)
    except ModelMountError as e:
        log.error("%s", e)  # what it shows can't be told; its own record went bad
        return False


def showing(store: Store, place: Path) -> list[Lease]:
    """The publications of this boot that show a tree in this entry; none of one that is gone."""
    try:
        roots = {mount.identity(path / "root") for path in place.iterdir() if (path / "root").is_dir()}
    except FileNotFoundError:
        return []
    return [
        lease
        for lease in Leases(store).walk()
        if lease.in_this_boot and mount.Identity(lease.device, lease.inode) in roots
    ]
