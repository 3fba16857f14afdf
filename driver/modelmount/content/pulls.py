"""Pull records: what a live job holds, and the space ledger computed from them.

A record `pulls/<id>.json` is alive as long as somebody holds `locks/pull-<id>`; the lock is taken first and released
last, so a record without a held lock is dead whatever ended its job.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelmount.content import ingest
from modelmount.content.diskerrors import translated
from modelmount.content.store import Store
from modelmount.errors import NoSpace
from modelmount.oci.digest import Digest
from modelmount.system import atomic, disk
from modelmount.system.lock import Held, LockTimeout

log = logging.getLogger(__name__)

LOOKS = 3
"""How often a claim is decided without the lock before others have to wait for it: somebody else was quicker each time.
"""
_ADMISSION_BYTES = 16
MANIFEST = "manifest"
"""The form in which a claim holds a model."""


class Claim(msgspec.Struct, frozen=True):
    """One thing a job holds: a digest in one form, and the bytes its download will take on disk altogether.

    `ingest` is the name of its download (`ingest.name`), whether that has begun or not. Once the digest is in the store
    for the scope in that name, the claim still holds it and needs no more space.
    """

    hex: str
    form: str
    ingest: str
    size: int
    namespace: str = ""
    """Whose pull it is, in the claim of a manifest; empty where nobody says."""

    @classmethod
    def of_manifest(cls, digest: Digest, scope: str, namespace: str = "") -> Claim:
        """On a model as a whole: whatever its manifest names stays. Takes no space of its own."""
        return cls(digest.hex, MANIFEST, ingest.name(digest, scope, ingest.RAW), 0, namespace)


@dataclass(slots=True)
class PullRecord:
    """A live job's record. `close` forgets it; the process's death does the same."""

    store: Store
    id: str
    held: Held

    @classmethod
    def open(cls, store: Store, claims: Iterable[Claim] = ()) -> PullRecord:
        """Take a fresh id and its lock, and write the record under the shared store lock: before the first look at what
        is present. `claims` are what the job needs in any case, for as long as it lives. Raises NoSpace, Internal.
        """
        pull_id = secrets.token_hex(8)
        with translated("record a pull"):
            record = cls(store, pull_id, store.lock(f"pull-{pull_id}").acquire())
            try:
                with store.locks.shared():
                    record._write(list(claims))
            except BaseException:
                record.close()
                raise
        return record

    def claim(
        self, claims: Iterable[Claim], *, room: Callable[[], int], quota: Callable[[int, int], None] | None = None
    ) -> None:
        """Hold these digests and reserve what their downloads still need, in place of what was claimed before; or raise
        NoSpace saying how much is needed and free, and claim nothing new. Atomic against every other job.

        `room` is how much more all pulls together may write; it is asked after what they were promised has been
        counted, so that bytes which arrive meanwhile count twice rather than not at all. `quota` is called with the
        downloads that these claims add and those of the same namespace's other pulls, each whole until it is committed;
        it may raise NoSpace. Both may be called several times: all that is slow to read is read without the lock, and
        counts if nobody was admitted since.
        """
        wanted = {claim.ingest: claim for claim in claims}
        for _ in range(LOOKS):
            with translated("record a pull"):
                admission = self._last_admission()
                self._require_room(wanted, room, quota)
            if self._admit(wanted, admission):
                return
        # Others keep coming: they wait now.
        self._admit(wanted, None, lambda: self._require_room(wanted, room, quota))

    def _require_room(
        self, wanted: Mapping[str, Claim], room: Callable[[], int], quota: Callable[[int, int], None] | None
    ) -> None:
        """Raise NoSpace if the claims don't fit beside what was admitted so far."""
        others = _others(self.store, besides=self.id)
        promised = sum(_outstanding(self.store, claim) for claim in others.values())
        if quota is not None:
            of_it = _downloads(self.store, namespace_of(wanted.values()), besides=self.id)
            more = {name: claim for name, claim in wanted.items() if name not in of_it}
            quota(_unfinished(self.store, more.values()), _unfinished(self.store, of_it.values()))
        needed = sum(_beyond(self.store, claim, others.get(name)) for name, claim in wanted.items())
        available = room() - promised if needed else 0
        if needed > available:
            others_hold = f" (other pulls hold {_human(promised)})" if promised else ""
            raise NoSpace(
                f"{_human(needed)} more are needed on {self.store.root}, {_human(max(0, available))} are free for "
                f"it{others_hold}",
                short_bytes=needed - available,
            )

    def _admit(
        self, wanted: Mapping[str, Claim], seen: bytes | None, decide: Callable[[], None] = lambda: None
    ) -> bool:
        """Write the claims down, if nobody was admitted since `seen` (None: whoever was), and if `decide` lets them."""
        # The store lock keeps a sweep from a record half-written; `space` is a leaf and comes last.
        with self.store.locks.shared(), self.store.lock("space").acquire() as held, translated("record a pull"):
            if seen is not None and self._last_admission() != seen:
                return False
            decide()
            # Before the record: whoever looks between the two looks again.
            with Path(held.path).open("r+b", buffering=0) as file:
                file.write(secrets.token_bytes(_ADMISSION_BYTES))
            self._write(list(wanted.values()))
            return True

    def _last_admission(self) -> bytes:
        """Differs from before once any job of any process was admitted since."""
        try:
            return atomic.read_file(f"{self.store.root}/locks/space")
        except FileNotFoundError:
            return b""  # nobody ever was

    def hold(self, claims: Iterable[Claim]) -> None:
        """Hold these digests, and reserve nothing: so that nothing of them goes while room is made. Raises NoSpace,
        Internal.
        """
        with self.store.locks.shared(), translated("record a pull"):
            self._write([msgspec.structs.replace(claim, size=0) for claim in claims])

    def shortage(self) -> str:
        """How much what is claimed still needs, and how much is free: for who reads that the disk became full."""
        claims = msgspec.json.decode(self._path.read_bytes(), type=list[Claim])
        needed = sum(_outstanding(self.store, claim) for claim in claims)
        free = disk.free_bytes(self.store.root)
        return f"{_human(needed)} more are needed on {self.store.root}, {_human(free)} are free"

    def close(self) -> None:
        """Forget the record, then its lock. Never raises; twice is harmless."""
        try:
            try:
                self._path.unlink(missing_ok=True)
            finally:
                self.held.release(unlink=True)
        except OSError as e:  # a disk that failed is often read-only from then on; the lock is free all the same
            log.warning("cannot remove the record of a pull: %s", e.strerror)

    @property
    def _path(self) -> Path:
        return self.store.root / "pulls" / f"{self.id}.json"

    def _write(self, claims: list[Claim]) -> None:
        # A dead job's record means nothing, so a torn or lost one costs nothing: no fsync.
        temporary = self._path.with_name(f".{self.id}.tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(claims))
            os.replace(temporary, self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def namespace_of(claims: Iterable[Claim]) -> str:
    """Whose pull has these claims."""
    return next((claim.namespace for claim in claims if claim.form == MANIFEST), "")


def outstanding_bytes(store: Store) -> int:
    """What all live pulls will still write."""
    return sum(_outstanding(store, claim) for claim in _others(store, besides="").values())


def come(store: Store, claims: Iterable[Claim]) -> tuple[int, int, bool]:
    """How much of what these claims take on disk is here, how much that is altogether, and whether all is committed."""
    here = total = 0
    complete = True
    for claim in claims:
        left = _outstanding(store, claim)
        here, total = here + claim.size - left, total + claim.size
        complete = complete and (claim.form == MANIFEST or ingest.finished(store, claim.ingest))
    return here, total, complete


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
    try:
        record.unlink(missing_ok=True)
    finally:
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
    """What its download will still write; nothing once it is committed."""
    # In this order: an ingest that is gone when its bytes are counted has been committed before.
    allocated = disk.allocated_bytes(f"{store.root}/ingest/{claim.ingest}")
    return 0 if ingest.finished(store, claim.ingest) else max(0, claim.size - allocated)


def _beyond(store: Store, claim: Claim, other: Claim | None) -> int:
    """What it needs on top of what somebody else reserved for the same download."""
    return max(0, _outstanding(store, claim) - (0 if other is None else _outstanding(store, other)))


def _downloads(store: Store, namespace: str, *, besides: str) -> dict[str, Claim]:
    """Those of one namespace's live pulls."""
    records = [claims for pull_id, claims in live_records(store) if pull_id != besides]
    return {claim.ingest: claim for claims in records if namespace_of(claims) == namespace for claim in claims}


def _unfinished(store: Store, claims: Iterable[Claim]) -> int:
    """The sizes of downloads that aren't committed yet, whatever of them has arrived."""
    return sum(claim.size for claim in claims if not ingest.finished(store, claim.ingest))


def _others(store: Store, *, besides: str) -> dict[str, Claim]:
    """The distinct downloads of all other jobs: who shares one needs its space once."""
    found: dict[str, Claim] = {}
    for pull_id, claims in live_records(store):
        for claim in claims if pull_id != besides else ():
            known = found.get(claim.ingest)
            if known is None or known.size < claim.size:
                found[claim.ingest] = claim
    return found


def _human(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
