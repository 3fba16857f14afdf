"""What a dead process left half-made, removed at start: no network, no unmount, nothing verified touched.

Half-made things are `.<name>.<random>` beside their final place and are written under the shared store lock, so
whatever is seen under the exclusive one is dead. Ingests stay, for they are what a resumed download starts from, except
those whose blob or layer is in the store already.
"""

from __future__ import annotations

import secrets
from collections.abc import Container, Iterator
from pathlib import Path

from modelmount.content import asides, ingest, pulls, trash
from modelmount.content.store import Store
from modelmount.system import atomic
from modelmount.system.lock import Held, LockTimeout

_PATTERNS = (
    *(f"{room}/.*" for room in ("blobs/sha256", "blobs/sha512", "trees", "refs", "volumes", "pulls", "backoff")),
    *(f"{room}/*/.*" for room in ("views", "models", "unpacked")),
    "models/*/*/.*",
    ".scrub.json.*",
    f"{asides.ROOM}/*",  # what a dead driver met, which the next one finds out for itself
)
_COMING_AND_GOING = ("pull-", "ingest-")
"""Locks that are named after what they guard; their files are left when their holder dies. Those of targets stay."""


def clear(store: Store, *, sparing: Container[str] = ()) -> int:
    """Remove debris, the records of dead jobs and whatever lies in `trash/`, but for the trees named in `sparing`: they
    are mounted. How many things went.

    Safe beside other processes on the same root. What can't be removed is logged and left for the next start.
    """
    with store.locks.exclusive():
        # Only renames in here: everybody waits for this lock.
        removed = sum(_discard(store, path) for path in _half_made(store))
        removed += sum(pulls.forget_if_dead(store, record) for record in (store.root / "pulls").glob("*.json"))
    removed += sum(_remove_finished(store, path) for path in (store.root / "ingest").iterdir())
    removed += sum(_remove_lock(store, path) for path in (store.root / "locks").iterdir())
    for path in (store.root / "trash").iterdir():
        if not trash.holds_any(path, sparing):
            trash.delete(path)
    return removed


def _half_made(store: Store) -> Iterator[Path]:
    for pattern in _PATTERNS:
        yield from store.root.glob(pattern)


def _discard(store: Store, path: Path) -> int:
    atomic.rename_noreplace(path, store.root / "trash" / f"{path.name.lstrip('.')}.{secrets.token_hex(8)}")
    return 1


def _remove_finished(store: Store, directory: Path) -> int:
    """An ingest that was committed by a process which died before it could remove the rest."""
    if not ingest.finished(store, directory.name):
        return 0
    held = _free(store, f"ingest-{directory.name}")
    if held is None:
        return 0
    try:
        # Asked once more under the lock: until then a sweep and a new download may have come.
        if not ingest.finished(store, directory.name):
            return 0
        trash.delete(directory)
        return 1
    finally:
        held.release(unlink=True)


def _remove_lock(store: Store, path: Path) -> int:
    if not path.name.startswith(_COMING_AND_GOING):
        return 0
    held = _free(store, path.name)
    if held is None:
        return 0
    held.release(unlink=True)
    return 1


def _free(store: Store, name: str) -> Held | None:
    try:
        return store.lock(name).acquire(timeout=0)
    except LockTimeout:
        return None
