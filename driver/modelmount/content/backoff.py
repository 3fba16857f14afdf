"""Back-off after wrong bytes, per blob, scope and source, kept on disk so that a restart does not forget it: 1 minute
doubling to 1 hour.
"""

from __future__ import annotations

import time

import msgspec

from modelmount.content.store import Store
from modelmount.errors import IntegrityError
from modelmount.oci.digest import Digest
from modelmount.system import atomic

FIRST_SECONDS = 60.0
LAST_SECONDS = 3600.0


class _Record(msgspec.Struct):
    next_try: float
    count: int
    reason: str


class Backoff:
    """The bar of one blob in one scope from one source. Times are wall-clock seconds; a bar from the future beyond an
    hour is cut to it.
    """

    def __init__(self, store: Store, digest: Digest, scope: str, source: str) -> None:
        """Nothing is read or written yet."""
        self._path = store.root / "backoff" / f"{digest.hex}-{scope}-{source}.json"
        self._store = store

    def check(self) -> None:
        """Raise IntegrityError with the recorded reason and the next try while the bar stands."""
        record = self._read()
        if record is None:
            return
        wait = min(record.next_try - time.time(), LAST_SECONDS)
        if wait > 0:
            raise IntegrityError(f"{record.reason}; not asked again for {wait:.0f} s (tried {record.count} times)")

    def punish(self, reason: str) -> None:
        """Remember wrong bytes: each time twice as long."""
        record = self._read()
        count = record.count + 1 if record else 1
        delay = min(FIRST_SECONDS * 2 ** min(count - 1, 16), LAST_SECONDS)
        with self._store.locks.shared():
            atomic.write_file(self._path, msgspec.json.encode(_Record(time.time() + delay, count, reason)))

    def forgive(self) -> None:
        """The right bytes came."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> _Record | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Record)
        except (FileNotFoundError, msgspec.DecodeError):
            return None  # an unreadable bar bars nothing
