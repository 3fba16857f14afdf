"""Pull records: what a live job holds, and the space ledger computed from them.

A record `pulls/<id>.json` is alive as long as somebody holds `locks/pull-<id>`; the lock is taken first and released
last, so a record without a held lock is dead whatever ended its job.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelmount.content.store import Store
from modelmount.errors import NoSpace
from modelmount.system import disk
from modelmount.system.lock import Held, LockTimeout


class Claim(msgspec.Struct, frozen=True):
    """One thing a job holds: a digest in one form, and the bytes its download will take on disk altogether."""

    hex: str
    form: str
    ingest: str
    size: int


@dataclass(slots=True)
class PullRecord:
    """A live job's record. `close` forgets it; the process's death does the same."""

    store: Store
    id: str
    held: Held

    @classmethod
    def open(cls, store: Store) -> PullRecord:
        """Take a fresh id and its lock, and write an empty record under the shared store lock: before the first look at
        what is present.
        """
        pull_id = secrets.token_hex(8)
        held = store.lock(f"pull-{pull_id}").acquire()
        record = cls(store, pull_id, held)
        with store.locks.shared():
            record._write([])
        return record

    def claim(self, claims: Iterable[Claim], *, keep_free: int) -> None:
        """Reserve what these downloads still need, or raise NoSpace saying how much is needed and free; atomic against
        every other job.
        """
        wanted = list(claims)
        with self.store.lock("space").acquire():
            needed = sum(_outstanding(self.store, claim) for claim in wanted)
            available = disk.free_bytes(self.store.root) - _promised(self.store, besides=self.id) - keep_free
            if needed > available:
                raise NoSpace(
                    f"{_human(needed)} more are needed on {self.store.root}, {_human(max(0, available))} are free for "
                    "it"
                    f" (other pulls hold {_human(_promised(self.store, besides=self.id))}, {_human(keep_free)} stay "
                    "free); free space there or add some"
                )
            self._write(wanted)

    def close(self) -> None:
        """Forget the record, then its lock. Safe to call twice."""
        self._path.unlink(missing_ok=True)
        self.held.release(unlink=True)

    @property
    def _path(self) -> Path:
        return self.store.root / "pulls" / f"{self.id}.json"

    def _write(self, claims: list[Claim]) -> None:
        # A dead job's record means nothing, so a torn or lost one costs nothing: no fsync.
        temporary = self._path.with_name(f".{self.id}.tmp")
        temporary.write_bytes(msgspec.json.encode(claims))
        os.replace(temporary, self._path)


def live_records(store: Store) -> Iterator[tuple[str, list[Claim]]]:
    """The records of jobs that live in any process."""
    for path in (store.root / "pulls").glob("*.json"):
        with _if_alive(store, path.stem) as alive:
            if not alive:
                continue
        try:
            yield path.stem, msgspec.json.decode(path.read_bytes(), type=list[Claim])
        except FileNotFoundError:
            continue


def forget_if_dead(store: Store, record: Path) -> int:
    """Remove a record whose job is dead; 1 when it was."""
    lock = store.lock(f"pull-{record.stem}")
    try:
        held = lock.acquire(timeout=0)
    except LockTimeout:
        return 0
    record.unlink(missing_ok=True)
    held.release(unlink=True)
    return 1


@contextmanager
def _if_alive(store: Store, pull_id: str) -> Iterator[bool]:
    path = store.root / "locks" / f"pull-{pull_id}"
    if not path.exists():
        yield False
        return
    try:
        held = store.lock(f"pull-{pull_id}").acquire(timeout=0)
    except LockTimeout:
        yield True
        return
    try:
        yield False
    finally:
        held.release(unlink=True)


def _outstanding(store: Store, claim: Claim) -> int:
    return max(0, claim.size - disk.allocated_bytes(store.root / "ingest" / claim.ingest))


def _promised(store: Store, *, besides: str) -> int:
    distinct = {
        claim.ingest: claim for pull_id, claims in live_records(store) if pull_id != besides for claim in claims
    }
    return sum(_outstanding(store, claim) for claim in distinct.values())


def _human(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
