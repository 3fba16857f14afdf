"""Archives unpacked where a bug can't become root: each by a process of its own, which has no rights, sees nothing but
its archive, and can write nothing but new files into its own directory.

The process (`worker`) is trusted by nobody. What it says is checked as if the archive's publisher had said it, and what
it made is looked at after its end: plain files, as many and as large as it said. Only then they become ours.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

from modelmount.errors import Cancelled
from modelmount.formats.base import Encoding, Member
from modelmount.oci.digest import Digest
from modelmount.snapshots import talk, unpack
from modelmount.snapshots.talk import Talk
from modelmount.snapshots.worker import Done, Found, More, Refused, Unpack
from modelmount.system import atomic

SILENT_SECONDS: Final = 900.0
"""How long a process that has all it asked for may stay silent: a disk may be slow."""


class Stream(Protocol):
    """An archive from its beginning; for one reader."""

    @property
    def size(self) -> int:
        """All its bytes."""
        ...

    def fileno(self) -> int:
        """A descriptor to read them from, at their offsets."""
        ...

    def limit(self, position: int) -> int:
        """Everything below `position` was read: wait until more may be, and up to where. Raises Cancelled."""
        ...


class Whole:
    """An archive that is in the store already, as a stream."""

    def __init__(self, path: Path) -> None:
        """At its beginning. Raises OSError."""
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._file.fileno()

    def limit(self, position: int) -> int:
        """Everything may be read."""
        return self.size

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._file.close()


def unpack_isolated(
    stream: Stream,
    encoding: Encoding,
    files: int,
    limits: unpack.Limits,
    cancelled: Callable[[], bool],
    *,
    uncompressed: Digest | None = None,
) -> list[Member]:
    """`unpack.unpack` by a process of its own. Afterwards all files are this process's user's, 0444.

    Raises as that does, UnpackingFailed where the process ended otherwise, and Internal where there can't be one. When
    it returns or raises, the process is gone.
    """
    if cancelled():
        raise Cancelled("unpacking was stopped; what was downloaded is kept")
    limits = limits.of(stream.size)
    order = Unpack(
        encoding, stream.size, limits, str(uncompressed) if uncompressed else None, talk.bounds(stream.size, limits)
    )
    unpacking = _Unpacking(Talk(order, [stream.fileno(), files]), stream, encoding, limits)

    def look() -> None:
        if cancelled():
            raise Cancelled("unpacking was stopped; what was downloaded is kept")
        unpack.require_space(files, limits)  # it should see to that itself

    try:
        unpacking.serve(look)
    finally:
        ended = unpacking.talk.end()
        _take_back(files)
    if ended.status is None:  # with nobody to say that it is gone, it may still write
        raise talk.ended(ended)
    unpacking.require_whole()
    _take_over(files, unpacking.members)
    return unpacking.members


class _Unpacking:
    """The talk with one process, from its start to its last word."""

    def __init__(self, with_it: Talk, stream: Stream, encoding: Encoding, limits: unpack.Limits) -> None:
        self.members: list[Member] = []
        self.talk = with_it
        self._stream, self._encoding, self._limits = stream, encoding, limits
        self._granted = self._total = 0
        self._names = talk.Names(rootfs=encoding.is_rootfs)

    def serve(self, look: Callable[[], None]) -> None:
        """Answer until it is done, and `look` now and then. Raises what that raises, what the process refuses with, and
        UnpackingFailed when it ends or does what it must not.
        """
        while True:
            match self.talk.hear(look, SILENT_SECONDS):
                case More(position):
                    self._grant(position)
                case Found(members):
                    for member in members:
                        self._check(member)
                        self.members.append(member)
                case Refused() as refused:
                    talk.raise_refused(refused)
                case Done():
                    return
                case _:
                    raise talk.misbehaved()

    def require_whole(self) -> None:
        """What can be said only after its last word."""
        if not self._encoding.is_archive and len(self.members) != 1:
            raise talk.misbehaved()

    def _grant(self, position: int) -> None:
        if position != self._granted or position == self._stream.size:
            raise talk.misbehaved()
        self._granted = self._stream.limit(position)
        self.talk.say(self._granted.to_bytes(8, "little"))

    def _check(self, member: Member) -> None:
        ordinal = len(self.members)
        if member.number != ordinal or ordinal >= self._limits.entries:
            raise talk.misbehaved()
        if member.is_file:
            self._total += member.size
            is_hashed = len(member.sha256) == 64 and not member.sha256.strip("0123456789abcdef")
            if member.size < 0 or self._total > self._limits.bytes or not is_hashed or member.target:
                raise talk.misbehaved()
        elif member.size or member.sha256:
            raise talk.misbehaved()
        if self._encoding.is_archive:
            self._names.take(member)
        elif member.path or member.is_directory or member.special:
            raise talk.misbehaved()


def _take_back(files: int) -> None:
    """The directory is ours again. Nobody who could still write into it is left."""
    if os.fstat(files).st_uid != os.geteuid():
        os.fchown(files, os.geteuid(), os.getegid())
    os.fchmod(files, 0o700)


def _take_over(files: int, members: Iterable[Member]) -> None:
    """The files become ours, each of them a plain one, as large as was said, and nothing else is there. Raises
    UnpackingFailed.
    """
    expected = {str(member.number): member.size for member in members if member.is_file}
    user, group = os.geteuid(), os.getegid()
    with os.scandir(files) as entries:
        for entry in entries:
            size = expected.pop(entry.name, None)
            status = entry.stat(follow_symlinks=False)
            plain = status.st_mode == stat.S_IFREG | 0o444 and status.st_nlink == 1
            if size is None or not plain or status.st_size != size:
                raise talk.misbehaved()
            if (status.st_uid, status.st_gid) != (user, group):
                os.chown(entry.name, user, group, dir_fd=files, follow_symlinks=False)
            atomic.seal_beneath(files, entry.name)
    if expected:
        raise talk.misbehaved()
