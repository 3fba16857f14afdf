"""The hash thread behind the writer."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmount.oci.digest import Digest
from modelmount.pull import hashing
from modelmount.pull.hashing import Follower


@pytest.fixture(params=[100, hashing.INLINE_BYTES + 12345], ids=["hashed in place", "hashed by a thread"])
def content(request: pytest.FixtureRequest) -> bytes:
    return os.urandom(request.param)


def reader(fd: int) -> Callable[[memoryview, int], int]:
    return lambda view, offset: os.preadv(fd, [view], offset)


def follow(path: Path, content: bytes) -> tuple[int, Follower]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return fd, Follower(reader(fd), Digest.of(content), len(content))


def test_the_digest_is_that_of_all_bytes_however_they_arrived(tmp_path: Path, content: bytes) -> None:
    fd, follower = follow(tmp_path / "data", content)
    for start in range(0, len(content), 777_777):
        piece = content[start : start + 777_777]
        os.pwrite(fd, piece, start)
        follower.advance(start + len(piece))
    assert follower.finish() == hashlib.sha256(content).hexdigest()
    follower.stop()
    os.close(fd)


def test_a_file_that_shrinks_is_an_error_and_not_another_digest(tmp_path: Path, content: bytes) -> None:
    fd, follower = follow(tmp_path / "data", content)
    follower.advance(len(content))
    with pytest.raises(OSError, match="shrank"):
        follower.finish()
    follower.stop()
    os.close(fd)


def test_stopping_early_ends_the_thread(tmp_path: Path, content: bytes) -> None:
    before = set(threading.enumerate())
    fd, follower = follow(tmp_path / "data", content)
    follower.stop()
    assert set(threading.enumerate()) <= before
    os.close(fd)
