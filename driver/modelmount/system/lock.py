"""flock(2) as the store needs it: waits can be cancelled, a lock file may vanish, and readers can't starve the sweeper.

Each acquire opens the file anew, so two threads of one process exclude each other like two processes do. A lock ends
with its holder, however that dies: descriptors are close-on-exec, so programs started meanwhile don't carry it on. A
*forked* child that doesn't exec does; never fork while holding.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from modelmount.system import mountinfo

FIRST_DELAY_SECONDS: Final = 0.001
LONGEST_DELAY_SECONDS: Final = 0.025
COUNTED_MOST: Final = 4096
T = TypeVar("T")
_STRUCT_FLOCK: Final = "hhqqi0q"
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
_FLOCK: Final = re.compile(
    r"FLOCK\s+ADVISORY\s+WRITE\s+(?P<pid>-?\d+)\s+(?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+):(?P<inode>\d+)\s", re.ASCII
)


class LockTimeout(Exception):
    """The lock was not free within the time given."""


class LockCancelled(Exception):
    """The caller's `cancelled` became true while waiting."""


class Held:
    """A lock that is held until `release`, or until the end of the `with` block. Releasing twice does nothing."""

    def __init__(self, path: str, fd: int, *, shared: bool) -> None:
        self.path = path
        self.shared = shared
        self._fd = fd
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self, *, unlink: bool = False) -> None:
        """Give the lock up; with `unlink`, remove its file first (exclusive holders only: others may be about to lock
        the same inode).
        """
        if unlink and self.shared:
            raise ValueError("a shared lock's file must not be unlinked")
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._pid == os.getpid():
                if unlink:
                    Path(self.path).unlink(missing_ok=True)
                # Not close alone: a child forked by some library would keep the open file description and its lock.
                # Where that fails close has to do: whoever gave a turnstile up would lose the lock behind it else.
                with contextlib.suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)


class FileLock:
    """One lock file, made on first use with mode 0600 in a directory that exists. Holds no state: any number of threads
    may share it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)

    def make(self) -> None:
        """Make the file now, if it isn't there. Raises OSError."""
        os.close(os.open(self.path, _FLAGS, 0o600))

    def acquire(
        self, *, shared: bool = False, timeout: float | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Held:
        """Take the lock, waiting up to `timeout` seconds (None: for ever; 0: try once).

        Raises LockTimeout, or LockCancelled once `cancelled` answers true; it is asked before each try, at least every
        25 ms. Waiters are served in no particular order. Not reentrant.
        """
        return _patiently(lambda: self._try(shared=shared), os.path.basename(self.path), timeout, cancelled)

    def _try(self, *, shared: bool) -> Held | None:
        while True:
            fd = os.open(self.path, _FLAGS, 0o600)
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                if self._is_current(fd):
                    return Held(self.path, fd, shared=shared)
            except OSError as e:
                os.close(fd)
                if e.errno == errno.EWOULDBLOCK:
                    return None
                raise
            # The last holder unlinked the file between our open and our lock: what we hold guards nothing.
            os.close(fd)

    def _is_current(self, fd: int) -> bool:
        mine = os.fstat(fd)
        try:
            named = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)


def holder(path: Path) -> int | None:
    """The process that holds a lock file exclusively, by the kernel's table (man 5 proc_locks): 0 or less for one of
    another pid namespace. None where nobody holds it, or there is no such file; nothing is locked or made. Raises
    OSError.
    """
    try:
        inode = path.stat().st_ino
    except FileNotFoundError:
        return None
    # The table shows the file system's own device, as mountinfo does; stat has others on btrfs.
    shown = mountinfo.mount_of(path)
    for match in _FLOCK.finditer(Path("/proc/locks").read_text(encoding="ascii")):
        device = (int(match["major"], 16), int(match["minor"], 16))
        if int(match["inode"]) == inode and (shown is None or shown.device == device):
            return int(match["pid"])
    return None


def named(holder: int) -> str:
    """What `holder` found, for a person."""
    return f"process {holder}" if holder > 0 else "a process of another container"


class ByteLocks:
    """Locks by the thousand in one file, a byte each: for what takes less time than making and removing a file would.
    All are exclusive, and given up together by `close`, or when their holder dies.

    Each object excludes every other one, also in this process (man 2 fcntl, "Open file description locks"); what it
    holds, it gets again. For one thread.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the file, made on first use with mode 0600 in a directory that exists. Raises OSError."""
        self._fd = os.open(path, _FLAGS, 0o600)
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self, name: str) -> bool:
        """Take the lock `name`; False when somebody else has it. Names that share a byte, which is as likely as a
        collision of 56 bits, exclude each other.
        """
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _range(fcntl.F_WRLCK, _byte(name), 1))
        except OSError as e:
            if e.errno in {errno.EAGAIN, errno.EACCES}:
                return False
            raise
        return True

    def wait(self, name: str, cancelled: Callable[[], bool]) -> None:
        """Take the lock `name` as soon as nobody else has it. Raises LockCancelled as `FileLock.acquire` does."""
        _patiently(lambda: self.take(name) or None, name, None, cancelled)

    def close(self) -> None:
        """Give all of them up. Twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._pid == os.getpid():
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _range(fcntl.F_UNLCK, 0, 0))
        finally:
            os.close(fd)


class Counts:
    """Numbers by name that everybody else on the same file sees, a locked byte each: what is said ends with its holder.

    As with `ByteLocks`, each object is one voice, also in this process. The caller sees to it that one thread at a time
    uses it. The file is open from the first call that needs it until `close`; every call but that raises OSError.
    """

    def __init__(self, path: str | Path) -> None:
        """The file is made on first use with mode 0600, in a directory that exists."""
        self._path = os.fspath(path)
        self._fd = -1
        self._mine: dict[str, list[int]] = {}

    def say(self, name: str, count: int) -> None:
        """From now on it is `count` of `name` here. Of all objects together, COUNTED_MOST of a name are seen."""
        mine = self._mine.setdefault(name, [])
        while len(mine) > count:
            self._set(fcntl.F_UNLCK, mine.pop())
        begin = _field(name)
        for position in range(begin, begin + COUNTED_MOST):
            if len(mine) >= count:
                break
            if position not in mine and self._set(fcntl.F_WRLCK, position):
                mine.append(position)

    def elsewhere(self, name: str) -> int:
        """How many of `name` all others have together."""
        return self._locked(_field(name), COUNTED_MOST)

    def close(self) -> None:
        """Say nothing any more. Twice is harmless."""
        fd, self._fd = self._fd, -1
        self._mine.clear()
        if fd >= 0:
            os.close(fd)

    def _set(self, kind: int, position: int) -> bool:
        try:
            fcntl.fcntl(self._open(), fcntl.F_OFD_SETLK, _range(kind, position, 1))
        except OSError as e:
            if e.errno in {errno.EAGAIN, errno.EACCES}:
                return False
            raise
        return True

    def _locked(self, start: int, length: int) -> int:
        """Bytes in this range that others have locked: the kernel names one such stretch, and any at that."""
        if length <= 0:
            return 0
        answer = fcntl.fcntl(self._open(), fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, start, length))
        kind, _, first, count, _ = (int(each) for each in struct.unpack(_STRUCT_FLOCK, answer))
        if kind == fcntl.F_UNLCK:
            return 0
        end = start + length
        low, high = max(start, first), min(end, first + count) if count else end
        return high - low + self._locked(start, low - start) + self._locked(high, end - high)

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self._path, _FLAGS, 0o600)
        return self._fd


class StoreLock:
    """The store-wide lock: many shared holders or one exclusive, where a waiting exclusive one stops new shared ones.

    flock has no writer preference: overlapping shared holders would keep a sweeper out for ever. So everybody takes
    `store.turnstile` first; a shared taker passes through it, an exclusive one keeps it until it has the lock.
    `timeout` and `cancelled` cover both waits together.
    """

    def __init__(self, directory: Path) -> None:
        self._turnstile = FileLock(directory / "store.turnstile")
        self._store = FileLock(directory / "store")

    def shared(self, *, timeout: float | None = None, cancelled: Callable[[], bool] | None = None) -> Held:
        """Take the lock together with other shared holders. Raises like `FileLock.acquire`."""
        return self._acquire(shared=True, timeout=timeout, cancelled=cancelled)

    def exclusive(self, *, timeout: float | None = None, cancelled: Callable[[], bool] | None = None) -> Held:
        """Take the lock alone; new shared takers queue behind, so be brief. Raises like `FileLock.acquire`."""
        return self._acquire(shared=False, timeout=timeout, cancelled=cancelled)

    def _acquire(self, *, shared: bool, timeout: float | None, cancelled: Callable[[], bool] | None) -> Held:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._turnstile.acquire(timeout=timeout, cancelled=cancelled):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            return self._store.acquire(shared=shared, timeout=left, cancelled=cancelled)


def _byte(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])


def _field(name: str) -> int:
    """Where a name's bytes begin, COUNTED_MOST of them."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) * COUNTED_MOST


def _range(kind: int, start: int, length: int) -> bytes:
    """A `struct flock`; 0 bytes are all up to the end."""
    return struct.pack(_STRUCT_FLOCK, kind, os.SEEK_SET, start, length, 0)


def _patiently(
    attempt: Callable[[], T | None], name: str, timeout: float | None, cancelled: Callable[[], bool] | None
) -> T:
    """What `attempt` returns once it isn't None; see `FileLock.acquire`."""
    deadline = None if timeout is None else time.monotonic() + timeout
    delay = FIRST_DELAY_SECONDS
    while True:
        if cancelled is not None and cancelled():
            raise LockCancelled(f"waiting for the lock {name} was cancelled")
        got = attempt()
        if got is not None:
            return got
        remaining = LONGEST_DELAY_SECONDS if deadline is None else deadline - time.monotonic()
        if remaining <= 0:
            raise LockTimeout(f"the lock {name} is held by somebody else")
        time.sleep(min(delay, remaining))
        delay = min(delay * 2, LONGEST_DELAY_SECONDS)
