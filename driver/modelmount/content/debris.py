"""What a dead process left half-made, removed at start: no network, no unmount, nothing verified touched.

Half-made things are `.<name>.<random>` beside their final place and are written under the shared store lock, so
whatever is seen under the exclusive one is dead. Ingests stay: they are what a resumed download starts from.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from modelmount.content import pulls
from modelmount.content.store import Store

_FLAT = ("blobs/sha256", "blobs/sha512", "trees", "refs", "pulls", "backoff")
_NESTED = ("views", "models", "volumes")


def clear(store: Store) -> int:
    """Remove debris and the records of dead jobs; how many things went."""
    removed = 0
    with store.locks.exclusive():
        for path in _half_made(store):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            removed += 1
        for directory in (store.root / "volumes").iterdir():
            if not any(directory.iterdir()):
                directory.rmdir()
        for record in (store.root / "pulls").glob("*.json"):
            removed += pulls.forget_if_dead(store, record)
    for path in (store.root / "trash").iterdir():
        shutil.rmtree(path)
        removed += 1
    return removed


def _half_made(store: Store) -> Iterator[Path]:
    for room in _FLAT:
        yield from (store.root / room).glob(".*")
    for room in _NESTED:
        yield from (store.root / room).glob("*/.*")
