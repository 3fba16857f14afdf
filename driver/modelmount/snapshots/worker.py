"""What a process does that reads one archive: give up its rights, unpack or read the headers, say what it found.

It is forked for this one archive by the helper (`system.workers`), and trusted by nobody from the first byte of the
archive on. `talk` is the other side, and who orders what.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from isal import igzip_lib

from modelmount.errors import BadArtifact, NoSpace
from modelmount.formats.base import Encoding, Member
from modelmount.oci.digest import Digest
from modelmount.snapshots import decompress, tarstream, unpack
from modelmount.snapshots import walk as walks
from modelmount.system import confine

HANDED_BYTES: Final = 64 << 10
"""Most that comes in one message to who follows an archive."""
FOUND_MEMBERS: Final = 12
"""So many fit into one message, however long their names."""


class Unpack(msgspec.Struct, frozen=True, tag="unpack"):
    """What to unpack, and within which bounds. Descriptors of the archive and of an empty directory come with it."""

    encoding: Encoding
    size: int
    limits: unpack.Limits
    uncompressed: str | None
    bounds: confine.Limits


class Follow(msgspec.Struct, frozen=True, tag="follow"):
    """Say where the members of an uncompressed archive of `size` bytes lie, while it arrives. Each message brings bytes
    from where the next header is wanted on, and is answered with Reached. One more after the last asks what the members
    are. No descriptor comes with it.
    """

    size: int
    limits: unpack.Limits
    rootfs: bool
    bounds: confine.Limits


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Say what the members of an uncompressed archive of `size` bytes are, of which the headers are in the file whose
    descriptor comes with it.
    """

    size: int
    limits: unpack.Limits
    rootfs: bool
    bounds: confine.Limits


Order = Unpack | Follow | Read


class More(msgspec.Struct, frozen=True, tag="more"):
    """Everything below `position` was read. The answer, a message of eight bytes, says up to where it may go on."""

    position: int


class Found(msgspec.Struct, frozen=True, tag="found"):
    """The next members, after the whole archive was read."""

    members: list[Member]


class Reached(msgspec.Struct, frozen=True, tag="reached"):
    """The members with bytes whose headers ended in what was handed in, as offset and size, and where the next header
    is wanted. `over`: none is, for below `position` was something to be refused.
    """

    places: list[tuple[int, int]]
    position: int
    over: bool = False


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """It didn't go well: `error` is of the archive, of the share that must stay free, an OSError, a want of memory, of
    what this machine lets a process give up, or of nothing that anybody thought of.
    """

    error: Literal["artifact", "space", "disk", "memory", "machine", "unexpected"]
    message: str
    errno: int = 0


class Done(msgspec.Struct, frozen=True, tag="done"):
    """All is said."""


Message = More | Found | Reached | Refused | Done

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Order).decode


def work(order_bytes: bytes, control: socket.socket, descriptors: Sequence[int], parent: int) -> None:
    """A worker's whole work, as `system.workers.Work` says."""
    order: Order = _decode(order_bytes)
    try:
        confine.enter(descriptors[1] if isinstance(order, Unpack) else None, order.bounds, parent)
    except OSError as e:
        control.send(encode(Refused("machine", str(e))))
        return
    try:
        match order:
            case Unpack():
                found = _unpack(order, _Archive(descriptors[0], order.size, control), descriptors[1])
            case Read():
                found = _read(order, descriptors[0])
            case Follow():
                found = _follow(order, control)
    except Exception as e:  # noqa: BLE001 - whatever it is, the other side is told
        refused = _refused(e)
        del e  # with its traceback the memory goes that was wanted
        control.send(encode(refused))
        return
    for first in range(0, len(found), FOUND_MEMBERS):
        control.send(encode(Found(found[first : first + FOUND_MEMBERS])))
    control.send(encode(Done()))


def _unpack(order: Unpack, archive: _Archive, files: int) -> list[Member]:
    uncompressed = Digest.parse(order.uncompressed) if order.uncompressed is not None else None
    return unpack.unpack(archive, order.encoding, files, order.limits, lambda: False, uncompressed=uncompressed)


def _read(order: Read, descriptor: int) -> list[Member]:
    walk = walks.Walk(order.size, order.limits, rootfs=order.rootfs)
    return walks.members(lambda view, offset: os.preadv(descriptor, [view], offset), walk)


def _follow(order: Follow, control: socket.socket) -> list[Member]:
    walk = walks.Walk(order.size, order.limits, rootfs=order.rootfs)
    found: list[Member] = []
    refused: BadArtifact | None = None
    while walk.wanted and refused is None:
        data = memoryview(_answer(control, HANDED_BYTES))
        first = walk.position
        places: list[tuple[int, int]] = []
        try:
            while (at := walk.position - first) < len(data):
                member = walk.take(data[at : at + walk.wanted])
                if member is None:
                    continue
                found.append(member)
                if member.size:
                    places.append((member.number, member.size))
        except BadArtifact as e:
            refused = e
        control.send(encode(Reached(places, walk.position, refused is not None)))
    _answer(control, 1)
    if refused is not None:
        raise refused
    walk.finish()
    return found


def _answer(control: socket.socket, most: int) -> bytes:
    answer = control.recv(most)
    if not answer:
        os._exit(0)  # nobody wants it any more
    return answer


def _refused(error: Exception) -> Refused:
    match error:
        case BadArtifact():
            return Refused("artifact", error.message)
        case NoSpace():
            return Refused("space", error.message)
        case OSError():
            return Refused("disk", error.strerror or str(error), error.errno or 0)
        case MemoryError():
            return Refused("memory", "")
        case _:
            return Refused("unexpected", f"{type(error).__name__}: {error}")


class _Archive:
    """The archive as far as it may be read. What isn't hashed yet may be there and still change."""

    def __init__(self, descriptor: int, size: int, control: socket.socket) -> None:
        self._descriptor, self._size, self._control = descriptor, size, control
        self._position = self._limit = 0

    def readinto(self, buffer: memoryview, /) -> int:
        if self._position == self._size:
            return 0
        if self._position == self._limit:
            self._control.send(encode(More(self._position)))
            self._limit = int.from_bytes(_answer(self._control, 8), "little")
        count = os.preadv(self._descriptor, [buffer[: self._limit - self._position]], self._position)
        if not count:
            raise OSError(5, "the archive shrank while it was unpacked")
        self._position += count
        return count


def prepare() -> None:
    """Once, in the helper: what is imported or set up at its first use. A worker can open no file for it."""
    confine.prepare()
    for digest in ("sha256", "sha512"):
        hashlib.new(digest, b"").hexdigest()
    archive = iter([igzip_lib.compress(bytes(2 * tarstream.BLOCK_BYTES), flag=igzip_lib.COMP_GZIP)])

    class _Stream:
        def readinto(self, buffer: memoryview, /) -> int:
            data = next(archive, b"")
            buffer[: len(data)] = data
            return len(data)

    with decompress.opened(_Stream(), Encoding.TAR_GZIP, lambda: False) as pieces:
        list(tarstream.entries(tarstream.Source(pieces), 1))
    walks.Walk(tarstream.BLOCK_BYTES, unpack.Limits(0, 0), rootfs=False).take(memoryview(bytes(tarstream.BLOCK_BYTES)))
    msgspec.msgpack.decode(encode(Done()), type=Message)
