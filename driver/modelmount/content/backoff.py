"""Back-off after wrong bytes, per blob, scope and source, kept on disk so that a restart does not forget it: 1 minute
doubling to 1 hour.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelmount.content.store import Store
from modelmount.errors import IntegrityError
from modelmount.oci.digest import Digest
from modelmount.system import atomic

log = logging.getLogger(__name__)

FIRST_SECONDS = 60.0
LAST_SECONDS = 3600.0
_PLAIN_CHARACTERS = 60
"""Longest source in a file's name; with a sha512 digest and a temporary suffix the name stays below 255 bytes."""


class _Record(msgspec.Struct):
    next_try: float
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar that stands: the digest's hex digits and the source it is about, by name or, of a long one, by hash."""

    hex: str
    source: str
    reason: str
    next_try: float
    """Wall-clock seconds."""


def standing(store: Store) -> Iterator[Bar]:
    """Every bar that stands now."""
    for path in sorted((store.root / "backoff").glob("[0-9a-f]*.json")):
        record, (hex_digits, _, rest) = _read(path), path.stem.partition("-")
        if record is not None and 0 < record.next_try - time.time() <= LAST_SECONDS:
            yield Bar(hex_digits, rest.partition("-")[2], record.reason, record.next_try)


class Backoff:
    """The bar of one blob in one scope from one source. Times are wall-clock seconds; a bar that lies further ahead
    than any is ever set comes from a clock that was wrong, and bars nothing.
    """

    def __init__(
        self,
        store: Store,
        digest: Digest,
        scope: str,
        source: str,
        *,
        first_seconds: float = FIRST_SECONDS,
        last_seconds: float = LAST_SECONDS,
    ) -> None:
        """Nothing is read or written yet."""
        self._first, self._last = first_seconds, last_seconds
        if len(source) > _PLAIN_CHARACTERS or not source.isascii():
            source = hashlib.sha256(source.encode()).hexdigest()[:32]
        self._path = f"{store.root}/backoff/{digest.hex}-{scope}-{source}.json"
        self._store = store
        self._is_known_clean = False

    def check(self) -> None:
        """Raise IntegrityError with the recorded reason and the next try while the bar stands."""
        record = _read(self._path) if os.access(self._path, os.F_OK) else None  # of thousands next to none has one
        self._is_known_clean = record is None
        if record is None:
            return
        wait = record.next_try - time.time()
        if 0 < wait <= self._last:
            raise IntegrityError(f"{record.reason}; not asked again for {wait:.0f} s (tried {record.count} times)")

    def punish(self, reason: str) -> None:
        """Remember wrong bytes: each time twice as long. A bar that can't be written is logged and doesn't stand."""
        record = _read(self._path)
        self._is_known_clean = False
        count = record.count + 1 if record else 1
        delay = min(self._first * 2 ** min(count - 1, 16), self._last)
        data = msgspec.json.encode(_Record(time.time() + delay, count, reason))
        try:
            with self._store.locks.shared():
                atomic.write_file(self._path, data)
        except OSError as e:
            log.warning("cannot keep the back-off %s: %s", os.path.basename(self._path), e.strerror)

    def forgive(self) -> None:
        """The right bytes came. What somebody else wrote down since `check` found nothing may stay for its time."""
        if self._is_known_clean:
            return
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass  # there was none, or somebody else was as lucky
        except OSError as e:
            log.warning("cannot lift the back-off %s: %s", os.path.basename(self._path), e.strerror)


def _read(path: str | Path) -> _Record | None:
    try:
        return msgspec.json.decode(atomic.read_file(path), type=_Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as e:
        log.warning("the back-off %s is unreadable and bars nothing: %s", os.path.basename(path), e)
        return None
