"""The store's directory and file system, looked at without opening the store."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from modelmount.cache import bounds
from modelmount.cli.examinations.finding import Finding, fail, ok, warn
from modelmount.config import Settings
from modelmount.content import versions
from modelmount.content.store import foreign_entry
from modelmount.errors import Precondition
from modelmount.pull.progress import human_bytes
from modelmount.system import disk, mount

_ON_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "lustre"})
_FLOCK = re.compile(r"FLOCK\s+ADVISORY\s+WRITE\s+(?P<pid>-?\d+)\s+[0-9a-f]+:[0-9a-f]+:(?P<inode>\d+)\s")


def store(settings: Settings) -> Iterator[Finding]:
    """Whether the directory can be the store."""
    if settings.mode == "controller":
        return
    root = Path(settings.root)
    if not root.exists():
        place = _nearest(root)
        text = f"{root} isn't there yet; it is made at first use"
        yield (
            ok("store", text)
            if os.access(place, os.W_OK)
            else warn("store", f"{text}, but {place} can't be written", "run as root, or choose another root")
        )
    else:
        yield from _existing(root)
    yield from _file_system(root)


def space(settings: Settings) -> Iterator[Finding]:
    """Room for models, clear of the kubelet's thresholds."""
    if settings.mode == "controller":
        return
    place = _nearest(Path(settings.root))
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
    if settings.cache.max_bytes is not None and settings.cache.max_bytes > now.total:
        budget = human_bytes(settings.cache.max_bytes)
        yield warn(
            "space", f"cache.max_bytes is {budget}, more than the disk at {place} has", "lower it, or leave it out"
        )
    missing = bounds.short_inodes(there, now)
    if missing:
        remedy = "make a file system with more inodes, or lower cache.free_inodes"
        yield warn("space", f"{missing} files more than now must stay free to be made at {place}", remedy)


def driver(settings: Settings) -> Iterator[Finding]:
    """Who serves this store now."""
    lock = Path(settings.root) / "locks/driver"
    if settings.mode == "controller" or not lock.exists():
        return
    holder = _flock_holder(lock.stat().st_ino)
    if holder is None:
        yield ok("driver", f"no driver runs on {settings.root}")
    else:
        # 0 and -1: a process of another pid namespace.
        who = f"process {holder}" if holder > 0 else "a process of another container"
        yield ok("driver", f"{who} serves {settings.root}")


def _existing(root: Path) -> Iterator[Finding]:
    status = root.stat()
    if not stat.S_ISDIR(status.st_mode):
        yield fail("store", f"{root} is no directory", "remove it or choose another root")
        return
    if status.st_uid != os.geteuid() or not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        text = f"{root} belongs to user {status.st_uid} and can't be used by user {os.geteuid()}"
        yield fail("store", text, f"run as user {status.st_uid}, or choose another root")
        return
    if stat.S_IMODE(status.st_mode) & 0o077:
        text = f"{root} has mode {stat.S_IMODE(status.st_mode):04o}: other users can read every model"
        yield warn("store", text, f"chmod 0700 {root} (the driver does so when it starts)")
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


def _file_system(root: Path) -> Iterator[Finding]:
    entry = mount_of(_nearest(root))
    if entry is None:
        return
    place = f"{root} is on {entry.fstype}"
    if "ro" in entry.options or "ro" in entry.super_options:
        yield fail("disk", f"{place}, mounted read-only", "mount it read-write, or choose another root")
    elif entry.fstype == "overlay":
        remedy = "mount a directory of the host there (hostPath)"
        yield warn("disk", f"{place}, a container's own layer: models go when the container does", remedy)
    elif entry.fstype in {"tmpfs", "ramfs"}:
        yield warn("disk", f"{place}, which is memory: models take it, and go at a reboot", "use a disk")
    elif entry.fstype in _ON_NETWORK:
        yield warn("disk", f"{place}: locks and speed are the network's", "use a local disk")
    else:
        yield ok("disk", place)
    inside = [e.mount_point for e in _mounts() if Path(e.mount_point).is_relative_to(root / "blobs")]
    inside += [e.mount_point for e in _mounts() if e.mount_point in {str(root / "trees"), str(root / "unpacked")}]
    if inside:
        remedy = "unmount it: hard links between its parts are how the store saves space"
        yield fail("disk", f"{inside[0]} is a file system inside the store", remedy)


def mount_of(path: Path) -> mount.MountEntry | None:
    """The mount that shows `path`, here; None where there is no saying."""
    real = Path(os.path.realpath(path))
    above: mount.MountEntry | None = None
    for entry in _mounts():
        nearer = above is None or len(entry.mount_point) >= len(above.mount_point)
        if nearer and real.is_relative_to(entry.mount_point):
            above = entry
    return above


def _mounts() -> Iterable[mount.MountEntry]:
    return mount.mountinfo()


def _nearest(path: Path) -> Path:
    """The nearest directory above that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _flock_holder(inode: int) -> int | None:
    """The process that has a file exclusively locked, by the kernel's table (man 5 proc_locks); devices are compared by
    nobody, for the table shows others than stat does on some file systems.
    """
    for match in _FLOCK.finditer(Path("/proc/locks").read_text(encoding="ascii")):
        if int(match["inode"]) == inode:
            return int(match["pid"])
    return None
