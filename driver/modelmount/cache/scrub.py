"""Scrubbing: what the store has is read from the disk again and compared with its digests, at a bounded rate and past
the page cache.

Other bytes and bytes that can't be read are told apart. Wrong ones are read a second time, and go into quarantine when
they are wrong again. `scrub.json` in the root says how far the last scrub came, so that short ones reach everything in
turn.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from modelmount import telemetry
from modelmount.cache import quarantine
from modelmount.cache.census import Reader
from modelmount.cache.damage import Damage
from modelmount.cache.items import Item
from modelmount.cache.quarantine import Quarantined
from modelmount.cache.rounds import Rounds
from modelmount.config import Cache
from modelmount.content.store import Store
from modelmount.formats.base import Member
from modelmount.oci.digest import Digest
from modelmount.snapshots.layers import IndexEntry
from modelmount.system import atomic, disk
from modelmount.volumes.news import Tell

if TYPE_CHECKING:
    from hashlib import _Hash

log = logging.getLogger(__name__)

_BETWEEN_BYTES = 64 << 10
BUFFER_BYTES = 1 << 20
FIRST_SECONDS = 300.0
"""How long after its start a driver begins: a node that comes up has better things to do."""
PASS_SECONDS = 7 * 86400.0
"""How often everything is scrubbed, where the rate allows it."""
LOOK_SECONDS = 60.0
SAVE_ITEMS = 256
"""After so many small items the place is written down, large ones each."""


class Result(Enum):
    """What came of one item. GONE: it was collected meanwhile."""

    GOOD = "good"
    MISMATCH = "mismatch"
    UNREADABLE = "unreadable"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Examined:
    """One item after its verification; `detail` says what is wrong, `quarantined` where it went."""

    item: str
    result: Result
    detail: str = ""
    quarantined: Quarantined | None = None


class Place(msgspec.Struct, frozen=True):
    """How far scrubs came. `after` is the last item that was read, empty once everything was; `began` is when the last
    pass of the background began, in wall-clock seconds, 0 before the first.
    """

    after: str = ""
    began: float = 0.0


class _Bad(Exception):
    def __init__(self, result: Result, detail: str) -> None:
        super().__init__(detail)
        self.result = result


class Scrub:
    """Examines items of one store; for one thread. `rate` is asked for bytes per second again and again, 0 means as
    fast as the disk; a true `cancelled` ends it without an error, and the item under way doesn't count.
    """

    def __init__(
        self,
        store: Store,
        rate: Callable[[], int],
        cancelled: threading.Event,
        *,
        isolate: bool = True,
    ) -> None:
        """`isolate=False` only reports, and leaves bad items where they are."""
        self._store, self._rate, self._cancelled, self._isolate = store, rate, cancelled, isolate
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)
        self._ahead = time.monotonic()
        self.bytes = 0
        """Read so far."""

    def run(self, items: Iterable[Item]) -> Iterator[Examined]:
        """Examine each in turn; ends early when cancelled. Raises OSError where quarantine fails."""
        for item in items:
            examined = self._examine(item)
            if self._cancelled.is_set():
                return
            if examined.result is Result.MISMATCH:
                again = self._examine(item)
                if again.result is Result.GOOD:
                    detail = f"{examined.detail}, but was right when read again: look at this machine's memory and disk"
                    examined = Examined(item.name, Result.UNREADABLE, detail)
                elif again.result is Result.MISMATCH and self._isolate:
                    put = quarantine.put(self._store, item.name, examined.detail)
                    examined = Examined(item.name, Result.MISMATCH, examined.detail, put)
            if examined.result is Result.UNREADABLE:
                log.error("%s can't be read: %s", item.name, examined.detail)
            telemetry.scrub_results_total.labels(examined.result.value).inc()
            yield examined

    def _examine(self, item: Item) -> Examined:
        path = self._store.root / item.name
        try:
            if item.name.startswith("blobs/"):
                self._compare(path, Digest(path.parent.name, path.name), None)
            else:
                self._layer(path)
        except FileNotFoundError as e:
            if path.exists():
                return Examined(item.name, Result.MISMATCH, f"{Path(str(e.filename)).name} is missing in it")
            return Examined(item.name, Result.GONE)
        except OSError as e:
            return Examined(item.name, Result.UNREADABLE, e.strerror or str(e))
        except _Bad as e:
            return Examined(item.name, e.result, str(e))
        return Examined(item.name, Result.GOOD)

    def _layer(self, path: Path) -> None:
        data = (path / "index.json").read_bytes()
        try:
            entries = msgspec.json.decode(data, type=list[IndexEntry])
        except msgspec.DecodeError as e:
            raise _Bad(Result.MISMATCH, f"its index.json is unreadable: {e}") from e
        members = [entry.member(ordinal) for ordinal, entry in enumerate(entries)]
        if (path / "rest").exists():
            self._scattered(path, [member for member in members if member.is_file])
            return
        for member in members:
            if member.is_file:
                self._compare(path / "files" / str(member.number), Digest("sha256", member.sha256), member.path)
            if self._cancelled.is_set():
                return

    def _scattered(self, path: Path, files: list[Member]) -> None:
        """What an uncompressed archive became: its members and what lay between them, in order, have its digest."""
        digest = Digest("sha512" if len(path.parent.name) == 128 else "sha256", path.parent.name)
        hasher, position = digest.hasher(), 0
        with (path / "rest").open("rb", buffering=0) as rest:
            for member in files:
                self._between(rest, position, member.number, hasher)
                position = member.number
                for piece in disk.read_past_cache(path / "files" / str(member.number), self._buffer):
                    hasher.update(piece)
                    position += len(piece)
                    self._pace(len(piece))
                    if self._cancelled.is_set():
                        return
            self._between(rest, position, os.fstat(rest.fileno()).st_size, hasher)
        if hasher.hexdigest() != digest.hex:
            found = f"{digest.algorithm}:{hasher.hexdigest()}"
            raise _Bad(Result.MISMATCH, f"its members and what lay between them have the digest {found}")

    @staticmethod
    def _between(rest: FileIO, position: int, end: int, hasher: _Hash) -> None:
        while position < end and (piece := os.pread(rest.fileno(), min(_BETWEEN_BYTES, end - position), position)):
            hasher.update(piece)
            position += len(piece)

    def _compare(self, path: Path, digest: Digest, member: str | None) -> None:
        hasher, count = digest.hasher(), 0
        for piece in disk.read_past_cache(path, self._buffer):
            hasher.update(piece)
            count += len(piece)
            self._pace(len(piece))
            if self._cancelled.is_set():
                return
        if hasher.hexdigest() != digest.hex:
            what = "it" if member is None else f"its member {member!r}"
            raise _Bad(Result.MISMATCH, f"{what} has {count} bytes of digest {digest.algorithm}:{hasher.hexdigest()}")

    def _pace(self, count: int) -> None:
        self.bytes += count
        telemetry.scrubbed_bytes_total.inc(count)
        rate = self._rate()
        if rate <= 0:
            return
        now = time.monotonic()
        self._ahead = max(self._ahead, now - 1.0) + count / rate
        if self._ahead > now:
            self._cancelled.wait(self._ahead - now)


def in_turn(store: Store, items: Iterable[Item]) -> list[Item]:
    """All of them, those first that come after where the last scrub ended."""
    after = read_place(store).after
    ordered = sorted(items, key=lambda item: item.name)
    first = next((n for n, item in enumerate(ordered) if item.name > after), 0)
    return ordered[first:] + ordered[:first]


def reached(store: Store, item: str) -> None:
    """Write down how far a scrub came. Raises OSError."""
    place = msgspec.structs.replace(read_place(store), after=item)
    atomic.write_file(store.root / "scrub.json", msgspec.json.encode(place))


def read_place(store: Store) -> Place:
    """How far scrubs of this store came."""
    try:
        return msgspec.json.decode((store.root / "scrub.json").read_bytes(), type=Place)
    except (OSError, msgspec.DecodeError):
        return Place()


class Scrubber(Rounds):
    """The background scrub from `with` to its end. A pass over everything a week, at the configured rate; after a
    restart it goes on where it was.
    """

    def __init__(
        self,
        store: Store,
        reader: Reader,
        settings: Callable[[], Cache],
        *,
        tell: Tell | None = None,
        first_seconds: float = FIRST_SECONDS,
    ) -> None:
        """Nothing runs yet. Pods whose files went bad hear of it by `tell`."""
        super().__init__("scrub", first_seconds=first_seconds, seconds=LOOK_SECONDS)
        self._store, self._reader, self._settings = store, reader, settings
        self._damage = Damage(store, tell)

    def round(self) -> None:
        """Scrub, when a pass is due or was broken off."""
        quarantine.release(self._store)
        self._damage.look()
        if self._settings().scrub_bytes_per_second and self._is_due():
            self._pass()

    def _is_due(self) -> bool:
        place = read_place(self._store)
        age = time.time() - place.began
        return bool(place.after) or not 0 <= age < PASS_SECONDS

    def _pass(self) -> None:
        """From where the last one ended to the end of the names; then this pass is over."""
        place = read_place(self._store)
        if not place.after:
            self._save(Place("", time.time()))
        items = sorted(self._reader.read().items.values(), key=lambda item: item.name)
        scrub = Scrub(self._store, lambda: self._settings().scrub_bytes_per_second, self._ending)
        pending = 0
        for examined in scrub.run(item for item in items if item.name > place.after):
            pending += 1
            if examined.quarantined is not None:
                self._damage.look()
            if pending >= SAVE_ITEMS or scrub.bytes >= BUFFER_BYTES:
                reached(self._store, examined.item)
                pending = scrub.bytes = 0
        if not self._ending.is_set():
            self._save(Place("", read_place(self._store).began))

    def _save(self, place: Place) -> None:
        atomic.write_file(self._store.root / "scrub.json", msgspec.json.encode(place))
