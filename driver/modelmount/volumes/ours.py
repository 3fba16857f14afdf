"""Which mounts show one of our trees, by mountinfo: for start and for rare paths, never for a publish.

mountinfo names a mount's root by its path inside its file system, so the store's own place in that file system has to
be known first: in a container the store is itself a bind of the host's directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from modelmount.system import host, mount

_TREE = re.compile(r"(?P<room>trees|quarantine|trash)/(?:.*/)?(?P<id>[0-9a-f]{64})/root(?://deleted)?", re.ASCII)
_IN_TREE = re.compile(r"(?P<tree>(?:trees|quarantine|trash)/(?:[^/]*/)*?[0-9a-f]{64})/root(?:/|$)", re.ASCII)
_MAYBE_TREE = re.compile(rb"/[0-9a-f]{64}/root[/ ]")


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


def trees_in_use(root: Path) -> set[PurePath]:
    """All trees that some mount shows, whole or in part, by their paths below the store's root, ids last: in this mount
    namespace and in that of every process that can be seen from here. Hidden mounts and clones that outlived their
    target count too.

    Raises OSError when our own mounts can't be read; a process that ends meanwhile, or belongs to somebody we may not
    look at, is left out.
    """
    home = _home(os.path.realpath(root), mount.mountinfo())
    if home is None:
        return set()
    found: set[PurePath] = set()
    for data in _namespaces():
        lines = (line for line in data.split(b"\n") if _MAYBE_TREE.search(line))
        for entry in mount.parse_mountinfo(b"\n".join(lines)):
            if entry.device == home.device and entry.root.startswith(home.path):
                match = _IN_TREE.match(entry.root[len(home.path) :])
                if match is not None:
                    found.add(PurePath(match["tree"]))
    return found


def _namespaces() -> Iterator[bytes]:
    """mountinfo of every mount namespace, once each, ours first."""
    seen = {host.mount_namespace()}
    yield Path("/proc/self/mountinfo").read_bytes()
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        try:
            namespace = Path(f"/proc/{process}/ns/mnt").stat().st_ino
            if namespace in seen:
                continue
            data = Path(f"/proc/{process}/mountinfo").read_bytes()
        except OSError:
            continue  # it ended, or isn't ours to look at
        seen.add(namespace)
        yield data


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
