"""Downloads as the tests make them: bytes that are the same each time, ingests on them, and what the kernel was asked
to sync.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelmount.content import ingest as ingests
from modelmount.content import ranges
from modelmount.content import writer as writers
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.content.writer import Writer
from modelmount.oci.digest import Digest
from modelmount.system import atomic, syscalls

SCOPE, OTHER_SCOPE = "ab" * 16, "cd" * 16
PIECE = writers.PIECE_BYTES
BUFFER = PIECE // 8


def content(count: int, seed: str = "weights") -> bytes:
    """`count` bytes without patterns."""
    return hashlib.shake_128(seed.encode()).digest(count)


def open_ingest(store: Store, data: bytes, scope: str = SCOPE, form: str = ingests.RAW) -> Ingest:
    """The ingest of these bytes, under its lock; LockTimeout while somebody else works on it."""
    digest = Digest.of(data)
    held = store.lock("ingest-" + ingests.name(digest, scope, form)).acquire(timeout=0)
    return Ingest.open(store, digest, len(data), scope, form, held)


def write(writer: Writer, data: bytes | memoryview, buffer: int = BUFFER) -> None:
    """Append to the end of `data`, the blob's bytes from its beginning."""
    view = memoryview(data)
    while writer.offset < len(view):
        writer.append(view[writer.offset : writer.offset + buffer])


def feed(ingest: Ingest, data: bytes, end: int | None = None, *, killed: bool = False) -> None:
    """Write what is missing below `end`, in buffers as they come from the network; `killed`: nobody closes the
    writers.
    """
    view = memoryview(data)[:end]
    for first, last in ingest.missing:
        writer = ingest.writer(first)
        write(writer, view[:last])
        if not killed:
            writer.close()


def download(store: Store, data: bytes, scope: str = SCOPE) -> None:
    """All of it, committed."""
    ingest = open_ingest(store, data, scope)
    try:
        feed(ingest, data)
        ingest.commit_blob()
    finally:
        ingest.close()


def written(ingest: Ingest) -> int:
    """How many bytes it has."""
    return ingest.size - sum(last - first for first, last in ingest.missing)


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once it is true; fails the test after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def died(ingest: Ingest) -> None:
    """What is left when the process is killed: descriptors and the lock go, nothing else happens."""
    ingest._ended = True
    ingest.checkpoints.end()
    ingest.checkpoints.join()
    ingest._close_files()
    ingest._held.release()


def read(ingest: Ingest, count: int, offset: int = 0) -> bytes:
    """Bytes of the ingest, as many as there are."""
    view = memoryview(bytearray(count))
    filled = 0
    while filled < count and (got := ingest.read_into(view[filled:], offset + filled)):
        filled += got
    return bytes(view[:filled])


def assert_right(ingest: Ingest, data: bytes) -> None:
    """What the ingest doesn't call missing is what was to be downloaded."""
    found = read(ingest, len(data) + 1)
    for first, last in ranges.between(ingest.missing, len(data)):
        assert found[first:last] == data[first:last]


def resumed(store: Store, data: bytes) -> tuple[ranges.Range, ...]:
    """What the next attempt finds missing; the rest is right."""
    ingest = open_ingest(store, data)
    try:
        assert_right(ingest, data)
        return ingest.missing
    finally:
        ingest.close()


def directory(store: Store, data: bytes, scope: str = SCOPE, form: str = ingests.RAW) -> Path:
    """Where the ingest of these bytes lies."""
    return store.root / "ingest" / ingests.name(Digest.of(data), scope, form)


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[list[str]]:
    """What happens to files below `root`, in order: syncs with their file's mode, and renames."""
    found: list[str] = []

    def name(fd: int) -> str:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        mode = path.stat().st_mode & 0o777
        return f"{path.relative_to(root)} {mode:o}" if path.is_file() else f"{path.relative_to(root)}/"

    def spy(title: str, call: object) -> object:
        def calling(fd: int) -> None:
            found.append(f"{title} {name(fd)}")
            call(fd)  # type: ignore[operator]

        return calling

    def flushing(fd: int, original: Callable[[int], None] = syscalls.syncfs) -> None:
        found.append("syncfs")
        original(fd)

    def renaming(source: str | Path, destination: str | Path, original: object = atomic.rename_noreplace) -> None:
        found.append(f"rename {Path(destination).relative_to(root)}")
        original(source, destination)  # type: ignore[operator]

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", spy("fsync", os.fsync))
        patch.setattr(os, "fdatasync", spy("fdatasync", os.fdatasync))
        patch.setattr(atomic, "rename_noreplace", renaming)
        patch.setattr(syscalls, "syncfs", flushing)
        yield found
