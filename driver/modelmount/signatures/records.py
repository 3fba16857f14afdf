"""What was found out about a manifest in a repository, kept with the model: `models/<hex>/signatures/<scope>-<bound>`.

A record is about facts, so it stays true; it is bound to the keys, roots and demands that they were found with, and
another one is made when those change. It spares requests, and lets a node start while its registry is down.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from modelmount.content.store import Store
from modelmount.errors import InvalidRequest
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.policy.signing import Statement
from modelmount.system import atomic

log = logging.getLogger(__name__)

DIRECTORY: Final = "signatures"
VERSION: Final = 1
MOST_RECORDS: Final = 64
"""Of one model; the oldest goes for another one."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was said about the manifest `digest` in `repository`, judged with what `bound` stands for."""

    version: int
    digest: str
    repository: str
    bound: str
    rule: str
    """The rule that wanted to know."""
    at: float
    """When it was found out: wall-clock seconds."""
    statements: list[Statement]


def read(store: Store, repository: Repository, manifest: Digest, bound: str) -> Record | None:
    """The record, where there is one that is whole."""
    return _read(_path(store, repository, manifest, bound), repository, manifest, bound)


def write(store: Store, repository: Repository, manifest: Digest, record: Record) -> None:
    """Keep it durably. What can't be written is logged: it is found out again then."""
    path = _path(store, repository, manifest, record.bound)
    try:
        with store.locks.shared():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_room(path)
            atomic.write_file(path, msgspec.json.encode(record))
    except OSError as e:
        log.warning("cannot keep what was found out about the signatures of %s: %s", repository, e.strerror)


def of(store: Store, repository: Repository, manifest: Digest) -> Iterator[Record]:
    """All records of a manifest in this repository, the newest first."""
    directory = store.root / "models" / manifest.hex / DIRECTORY
    found = []
    for path in directory.glob(f"{repository.scope}-*"):
        record = _read(path, repository, manifest, None)
        if record is not None:
            found.append(record)
    yield from sorted(found, key=lambda each: -each.at)


def _read(path: Path, repository: Repository, manifest: Digest, bound: str | None) -> Record | None:
    try:
        record = msgspec.json.decode(atomic.read_file(path), type=Record)
        matches = Digest.parse(record.digest) == manifest and record.repository == str(repository)
    except (OSError, msgspec.DecodeError, InvalidRequest):
        return None
    return record if matches and record.version == VERSION and bound in {None, record.bound} else None


def _make_room(path: Path) -> None:
    there = [each for each in path.parent.iterdir() if each != path]
    if len(there) >= MOST_RECORDS:
        os.unlink(min(there, key=lambda each: each.stat().st_mtime))


def _path(store: Store, repository: Repository, manifest: Digest, bound: str) -> Path:
    return store.root / "models" / manifest.hex / DIRECTORY / f"{repository.scope}-{bound[:32]}"
