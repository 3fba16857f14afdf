"""Mirrors that are left alone, noted for whoever looks at the store from outside. A process decides by what it met
itself and asks no note; so notes are written late, may be missing, and go when a driver starts.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from modelmount.content.store import Store
from modelmount.system import atomic

log = logging.getLogger(__name__)

ROOM = "backoff/mirrors"


class Aside(msgspec.Struct, frozen=True):
    """A mirror that is left alone. Times are wall-clock seconds."""

    mirror: str
    since: float
    """When it was first set aside without an answer after it."""
    until: float
    """When it is tried again."""
    reason: str


def standing(store: Store) -> Iterator[Aside]:
    """Those whose time isn't over, by name."""
    found = [_read(path) for path in (store.root / ROOM).glob("[0-9a-f]*.json")]
    now = time.time()
    yield from sorted((each for each in found if each and each.until > now), key=lambda each: each.mirror)


class Asides:
    """Writes the notes of one process. Thread-safe. A note that can't be written is logged and isn't there."""

    def __init__(self, store: Store) -> None:
        """Nothing is written yet."""
        self._store = store

    def aside(self, mirror: str, since: float, until: float, reason: str) -> None:
        """It is left alone from now on."""
        path = self._path(mirror)
        try:
            with self._store.locks.shared():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                atomic.write_file(path, msgspec.json.encode(Aside(mirror, since, until, reason)))
        except OSError as e:
            log.warning("cannot note that mirror %s is left alone: %s", mirror, e.strerror)

    def back(self, mirror: str) -> None:
        """It answered."""
        try:
            self._path(mirror).unlink(missing_ok=True)
        except OSError as e:
            log.warning("cannot note that mirror %s is back: %s", mirror, e.strerror)

    def _path(self, mirror: str) -> Path:
        return self._store.root / ROOM / f"{hashlib.sha256(mirror.encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> Aside | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Aside)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as e:
        log.warning("the note %s is unreadable: %s", path.name, e)
        return None
