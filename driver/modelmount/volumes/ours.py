"""Which mounts show one of our trees, by mountinfo: for start and for rare paths, never for a publish.

mountinfo names a mount's root by its path inside its file system, so the store's own place in that file system has to
be known first: in a container the store is itself a bind of the host's directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modelmount.system import mount

_TREE = re.compile(r"(?P<room>trees|quarantine|trash)/(?:.*/)?(?P<id>[0-9a-f]{64})/root(?://deleted)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TreeMount:
    """One of our trees on top of a mount point. `in_place` is false once the tree was moved to quarantine or trash."""

    mount_point: str
    tree: str
    in_place: bool


def tree_mounts(root: Path, entries: Iterable[mount.MountEntry] | None = None) -> dict[str, TreeMount]:
    """The mount points whose topmost mount is a tree of the store at `root`. `entries` as `mount.mountinfo` gives them;
    None reads them now.
    """
    known = list(mount.mountinfo() if entries is None else entries)
    home = _home(os.path.realpath(root), known)
    found: dict[str, TreeMount] = {}
    for entry in known:
        # Of a stack on one path the last is on top: a later foreign mount hides an earlier one of ours.
        found.pop(entry.mount_point, None)
        if home is None or entry.device != home.device or not entry.root.startswith(home.path):
            continue
        match = _TREE.fullmatch(entry.root[len(home.path) :])
        if match is not None:
            found[entry.mount_point] = TreeMount(entry.mount_point, match["id"], match["room"] == "trees")
    return found


@dataclass(frozen=True, slots=True)
class _Home:
    """Where the store lies in its file system; `path` ends in a slash."""

    device: tuple[int, int]
    path: str


def _home(root: str, entries: list[mount.MountEntry]) -> _Home | None:
    above: mount.MountEntry | None = None
    for entry in entries:
        if not f"{root}/".startswith(f"{entry.mount_point.rstrip('/')}/"):
            continue
        if above is None or len(entry.mount_point) >= len(above.mount_point):
            above = entry
    if above is None:
        return None
    below = root[len(above.mount_point.rstrip("/")) :]
    return _Home(above.device, f"{above.root.rstrip('/')}{below}/")
