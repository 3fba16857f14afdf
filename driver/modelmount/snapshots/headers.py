"""The headers of uncompressed tars, read where a bug can't become root: by a process for each archive that has no
rights, and sees nothing but what it is handed. What it says of members is checked here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from modelmount.content.ranges import Range
from modelmount.errors import BadArtifact, Cancelled, UnpackingFailed
from modelmount.formats.base import Member
from modelmount.snapshots import talk, unpack
from modelmount.snapshots.tarstream import BLOCK_BYTES
from modelmount.snapshots.worker import HANDED_BYTES, Done, Follow, Found, Reached, Read, Refused
from modelmount.system import disk

SILENT_SECONDS: Final = 120.0
"""How long it may take over what it was handed, which takes milliseconds."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way on through an archive: members with bytes that lie there, and where the next header is wanted. `over`: none
    is, for something there is to be refused.
    """

    places: Sequence[Range]
    position: int
    over: bool


class Front:
    """From header to header through an archive while it arrives: where members lie, and in the end what they are. One
    thread at a time.
    """

    def __init__(
        self, size: int, limits: unpack.Limits, cancelled: Callable[[], bool], *, rootfs: bool, what: str
    ) -> None:
        """`what` begins the sentences of errors. A process is started when it is needed."""
        self._size, self._limits, self._cancelled = size, limits, cancelled
        self._rootfs, self._what = rootfs, what
        self._talk: talk.Talk | None = None
        self._chain = _Chain(size, limits)
        self._position = 0
        self._handed = BLOCK_BYTES

    @property
    def pid(self) -> int | None:
        """The process's, while there is one."""
        return self._talk.pid if self._talk is not None else None

    def feed(self, data: memoryview) -> Way | None:
        """The way that the head of `data`, the archive's bytes from the last position on, shows. None where the process
        failed over it, however: that is told once the bytes are verified.

        Raises Cancelled; UnpackingFailed for a process that was killed or lost, Unavailable or Internal where there
        can't be one.
        """
        if self._talk is None:
            self._talk = self._start()
        data = data[: self._handed]
        self._talk.say(data)
        try:
            message = self._talk.hear(lambda: _look(self._cancelled), SILENT_SECONDS)
            if isinstance(message, Refused):
                talk.raise_refused(message)
            return self._checked(message, self._position + len(data))
        except (BadArtifact, UnpackingFailed) as e:
            unlucky = self._talk.was_unlucky
            self.close()
            if unlucky:
                raise UnpackingFailed(f"{self._what}: {e.message}") from e
            return None
        except BaseException:
            self.close()
            raise

    @property
    def has_followed(self) -> bool:
        """Whether there is a process that `members` can ask."""
        return self._talk is not None

    def members(self) -> list[Member]:
        """What the members are, after all of the archive was fed or is `over`, if what was fed is what was verified.
        Raises as `read` does.
        """
        assert self._talk is not None
        self._talk.say(b"?")
        try:
            return _listed(self._talk, self._size, self._limits, self._cancelled, rootfs=self._rootfs)
        finally:
            self.close()

    def close(self) -> None:
        """End the process. Again is harmless."""
        ending, self._talk = self._talk, None
        if ending is not None:
            ending.end()

    def _start(self) -> talk.Talk:
        bounds = talk.bounds(self._size, self._limits)
        return talk.Talk(Follow(self._size, self._limits, self._rootfs, bounds), [])

    def _checked(self, message: object, end: int) -> Way:
        """What it said of everything below `end`."""
        if not isinstance(message, Reached):
            raise talk.misbehaved()
        places, position = [], message.position
        for number, size in message.places:
            if not self._position < number <= end or size == 0:
                raise talk.misbehaved()
            self._chain.take(number, size)
            places.append((number, number + size))
        furthest = max(end, self._chain.end)
        if not (self._position <= position <= end if message.over else position == furthest) or (
            position < self._chain.end
        ):
            raise talk.misbehaved()
        # Where members are small, many headers lie in what is at hand; where they are large, just the next.
        self._handed = BLOCK_BYTES if position - end >= HANDED_BYTES else min(HANDED_BYTES, 4 * self._handed)
        self._position = position
        return Way(places, position, message.over)


def read(
    descriptor: int, size: int, limits: unpack.Limits, cancelled: Callable[[], bool], *, rootfs: bool
) -> list[Member]:
    """The members of the verified archive of `size` bytes whose headers are in the file of `descriptor`, which is open
    for reading only, or sealed.

    Raises BadArtifact as `unpack.unpack` does; Cancelled; UnpackingFailed where the process ended otherwise; OSError;
    Unavailable or Internal where there can't be one.
    """
    order = Read(size, limits, rootfs, talk.bounds(size, limits))
    with talk.Talk(order, [descriptor]) as reading:
        return _listed(reading, size, limits, cancelled, rootfs=rootfs)


def read_small(data: bytes, limits: unpack.Limits, cancelled: Callable[[], bool], *, rootfs: bool) -> list[Member]:
    """The members of the verified archive `data`. Raises as `read` does."""
    descriptor = disk.sealed(data)
    try:
        return read(descriptor, len(data), limits, cancelled, rootfs=rootfs)
    finally:
        os.close(descriptor)


def _listed(
    reading: talk.Talk, size: int, limits: unpack.Limits, cancelled: Callable[[], bool], *, rootfs: bool
) -> list[Member]:
    """What it says that the members are, to its last word."""
    chain, names = _Chain(size, limits), talk.Names(rootfs=rootfs)
    found: list[Member] = []
    while True:
        match reading.hear(lambda: _look(cancelled), SILENT_SECONDS):
            case Found(members):
                for member in members:
                    if member.sha256 or (member.size and not member.is_file):
                        raise talk.misbehaved()
                    chain.take(member.number, member.size)
                    names.take(member)
                found += members
            case Refused() as refused:
                talk.raise_refused(refused)
            case Done():
                return found
            case _:
                raise talk.misbehaved()


class _Chain:
    """Where members may lie: at whole blocks behind each other, with a header before each; no more and no larger ones
    than the limits allow.
    """

    def __init__(self, size: int, limits: unpack.Limits) -> None:
        self._size, self._limits = size, limits
        self._count = self._total = 0
        self.end = 0
        """Where the next header may begin."""

    def take(self, number: int, size: int) -> None:
        """The next one. Raises UnpackingFailed."""
        end = number + size + -size % BLOCK_BYTES
        self._count += 1
        self._total += size
        lies_well = number >= self.end + BLOCK_BYTES and number % BLOCK_BYTES == 0 and size >= 0 and end <= self._size
        if not lies_well or self._count > self._limits.entries or self._total > self._limits.bytes:
            raise talk.misbehaved()
        self.end = end


def _look(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the pull was stopped; its bytes are kept")
