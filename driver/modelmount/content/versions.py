"""Versions of the store's layout: which one a store has, and the steps from each to the next.

A step is written once and never changed: it says how names and documents looked then, and uses nothing that later
versions may change. It moves names and rewrites small records only, never touches content or a mounted tree, and may be
done twice: the version is written after it, so a kill in its middle makes the next start do it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from modelmount.errors import Precondition
from modelmount.system import atomic

log = logging.getLogger(__name__)

VERSION = 2
"""The layout that this program writes, and the only one that it works on."""


def found(root: Path) -> int | None:
    """The version of the store at `root`, at most `VERSION`; None where there is none yet.

    Raises Precondition for a store of a newer version, and for one whose version can't be read: nobody knows what may
    be done to it. Raises OSError.
    """
    try:
        text = (root / "version").read_bytes()
    except FileNotFoundError:
        return None
    word = text[:20].decode(errors="replace").strip()
    number = int(word) if word.isascii() and word.isdigit() else 0
    if number > VERSION:
        raise Precondition(
            f"the store {root} has layout version {number}, made by a newer modelmount; this one knows versions up to "
            f"{VERSION}: upgrade modelmount, or give it another root"
        )
    if number not in {VERSION, *STEPS}:
        raise Precondition(
            f"the store {root} has layout version {word!r}, which no modelmount wrote; this one knows versions up to "
            f"{VERSION}: restore the file `version`, or give it another root"
        )
    return number


def require(root: Path, version: int | None) -> None:
    """Raise Precondition unless `version`, which was `found`, is the one that can be read."""
    if version != VERSION:
        raise Precondition(
            f"the store {root} has layout version {version}, and this modelmount reads {VERSION}; start the driver, "
            "which migrates it"
        )


def write(root: Path, number: int = VERSION) -> None:
    """Make it a store of this version, durably. Raises OSError."""
    atomic.write_file(root / "version", f"{number}\n".encode())


def migrate(root: Path) -> None:
    """Bring an older store to `VERSION`, in place, a step at a time; mounts stay as they are. The caller holds the
    `driver` lock and the exclusive store lock. Raises OSError, and then the store is of the version that it has
    reached.
    """
    while (number := found(root)) is not None and number < VERSION:
        log.info("the store %s is migrated from layout version %d to %d", root, number, number + 1)
        STEPS[number](root)
        atomic.failpoint("content.migration.before_version")
        write(root, number + 1)


# -- from 1 to 2: leases lie in one directory, and each view names its manifest

_VIEW_RULES = (1, 2)
"""The layout rules that version 1 knew."""


def _from_1(root: Path) -> None:
    """Version 1 began with a directory of leases for each volume, and with views that named only their tree. Its later
    programs wrote both as version 2 has it, so that a store may have either.
    """
    _flatten_leases(root / "volumes")
    _name_views(root)


def _flatten_leases(volumes: Path) -> None:
    directories = [path for path in sorted(volumes.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    for directory in directories:
        for lease in sorted(directory.glob("[0-9a-f]*.json")):
            flat = volumes / f"{directory.name}-{lease.name}"
            if flat.exists():
                lease.unlink()  # a later program has written it anew
            else:
                lease.rename(flat)
            atomic.failpoint("content.migration.after_lease")
    if directories:
        atomic.fsync_directory(volumes)  # their new names, before the old ones' directories go
    for directory in directories:
        try:
            for left in directory.glob(".*"):
                left.unlink()  # half-made by a program that died
            directory.rmdir()
        except OSError as e:  # somebody put something there; nobody looks into it any more
            log.warning("%s stays, because it can't be removed: %s", directory, e.strerror)


def _name_views(root: Path) -> None:
    """Views are derived: one whose manifest nobody remembers goes, and is made again from what is here."""
    keys: dict[str, str] | None = None
    for view in sorted((root / "views").glob("*/[0-9a-f]*")):
        record = _record(view)
        if record.get("manifest"):
            continue
        keys = _view_keys(root) if keys is None else keys
        manifest = keys.get(view.name)
        if manifest is None:
            view.unlink()
        else:
            atomic.write_file(view, json.dumps({**record, "manifest": manifest}).encode())
        atomic.failpoint("content.migration.after_view")


def _view_keys(root: Path) -> dict[str, str]:
    """The names that views may have, with their manifests: version 1 began with one selection, all files."""
    return {
        hashlib.sha256(f"{manifest}\n\n{rules}".encode()).hexdigest(): manifest
        for manifest in _manifests(root)
        for rules in _VIEW_RULES
    }


def _manifests(root: Path) -> Iterator[str]:
    for pattern, key in (
        ("refs/[0-9a-f]*", "manifest"),
        ("models/*/facts.json", "digest"),
        ("volumes/*.json", "manifest"),
    ):
        for path in root.glob(pattern):
            manifest = _record(path).get(key)
            if isinstance(manifest, str):
                yield manifest


def _record(path: Path) -> dict[str, object]:
    """A small document; nothing where it is torn or of another form."""
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, FileNotFoundError):
        return {}
    return document if isinstance(document, dict) else {}


STEPS: Mapping[int, Callable[[Path], None]] = {1: _from_1}
"""By the version that each begins with."""
