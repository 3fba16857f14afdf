"""What the store stands on: whose directory it is, on which file system, and whether its budget fits there. The driver
asks before it opens the store, `modelmount doctor` at any time; nothing is opened or changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelmount.config import Settings
from modelmount.pull.progress import human_bytes
from modelmount.system import mountinfo

ON_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "lustre"})
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_LINKED_ROOMS = ("blobs", "trees", "unpacked", "ingest", "quarantine", "trash")
"""Between these, files are linked or renamed: they must be one file system, and one mount of it."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong. A `fatal` one rules the place out; with any other the store works, but less well."""

    message: str
    remedy: str
    fatal: bool


def troubles(settings: Settings) -> Iterator[Trouble]:
    """Look now. Raises OSError where not even that is possible."""
    root = Path(settings.root)
    yield from file_system(root)
    if root.exists():
        yield from directory(root)
    yield from budget(settings)


def directory(root: Path) -> Iterator[Trouble]:
    """The root's owner and mode."""
    status = root.stat()
    if not stat.S_ISDIR(status.st_mode):
        yield Trouble(f"{root} is no directory", "remove it or choose another root", fatal=True)
    elif status.st_uid != os.geteuid():
        text = f"{root} belongs to user {status.st_uid} and can't be used by user {os.geteuid()}"
        yield Trouble(text, f"run as user {status.st_uid}, chown it, or choose another root", fatal=True)
    elif not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        remedy = "look at its mode and its file system, or choose another root"
        yield Trouble(f"{root} can't be read and written by user {os.geteuid()}, whose it is", remedy, fatal=True)
    elif stat.S_IMODE(status.st_mode) & 0o077:
        text = f"{root} has mode {stat.S_IMODE(status.st_mode):04o}: other users can read every model"
        yield Trouble(text, f"chmod 0700 {root} (the driver does so when it starts)", fatal=False)


def file_system(root: Path) -> Iterator[Trouble]:
    """What the root is on, and whether its rooms are on the same."""
    entry = mountinfo.mount_of(nearest(root))
    if entry is None:
        return
    place = f"{root} is on {entry.fstype}"
    if "ro" in entry.options or "ro" in entry.super_options:
        yield Trouble(f"{place}, mounted read-only", "mount it read-write, or choose another root", fatal=True)
    elif entry.fstype == "overlay":
        text = f"{place}, a container's own layer: models go when the container does"
        yield Trouble(text, "mount a directory of the host there (hostPath)", fatal=False)
    elif entry.fstype in IN_MEMORY:
        yield Trouble(f"{place}, which is memory: models take it, and go at a reboot", "use a disk", fatal=False)
    elif entry.fstype in ON_NETWORK:
        yield Trouble(f"{place}: locks and speed are the network's", "use a local disk", fatal=False)
    rooms = [Path(os.path.realpath(root)) / room for room in _LINKED_ROOMS]
    for point in sorted({Path(each.mount_point) for each in mountinfo.mountinfo()}):
        # What is mounted deeper, on a tree say, is no part of the store's own.
        if any(point == room or (room.name == "blobs" and point.parent == room) for room in rooms):
            remedy = "unmount it: hard links between its parts are how the store saves space"
            yield Trouble(f"{point} is a file system inside the store", remedy, fatal=True)


def budget(settings: Settings) -> Iterator[Trouble]:
    """Whether what models may take is there at all."""
    place = nearest(Path(settings.root))
    figures = os.statvfs(place)
    total = figures.f_blocks * figures.f_frsize
    most = settings.cache.max_bytes
    if most is not None and most > total:
        text = f"cache.max_bytes is {human_bytes(most)}, more than the disk at {place} has"
        yield Trouble(text, "lower it, or leave it out", fatal=False)


def nearest(path: Path) -> Path:
    """The nearest directory above that exists."""
    return next(place for place in (path, *path.parents) if place.exists())
