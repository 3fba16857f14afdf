"""Archives unpacked where a bug can't become root: each by a process of its own, which has no rights, sees nothing but
its archive, and can write nothing but new files into its own directory.

The process (`worker`) is trusted by nobody. What it says is checked as if the archive's publisher had said it, and what
it made is looked at after its end: plain files, as many and as large as it said. Only then they become ours.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NoReturn, Protocol

import msgspec

from modelmount.errors import BadArtifact, Cancelled, Internal, ModelMountError, NoSpace, Unavailable, UnpackingFailed
from modelmount.formats import paths
from modelmount.formats.base import Encoding, Member
from modelmount.oci.digest import Digest
from modelmount.snapshots import tarstream, unpack
from modelmount.snapshots.worker import Done, Found, Message, More, Order, Refused
from modelmount.system import atomic, confine, workers
from modelmount.system.workers import Ended, Worker

MEMORY_BYTES: Final = 512 << 20
"""Address space of an unpacking process beyond the interpreter's: the largest window of zstd, and threads."""
MEMORY_PER_BYTE: Final = 8
MOST_MEMORY_BYTES: Final = 4 << 30
"""Names take memory. An honest archive has some bytes for each; this much for each of its bytes is enough for it."""
CPU_SECONDS: Final = 120
CPU_SECONDS_PER_GIB: Final = 60
"""Ten times what it takes of an old processor, by what it may unpack to."""
SILENT_SECONDS: Final = 900.0
"""How long a process that has all it asked for may stay silent: a disk may be slow."""
DESCRIPTORS: Final = 16

_LOOK_SECONDS: Final = 0.25
_MESSAGE_CHARACTERS: Final = 600
_CRASHES: Final = "the archive is hostile or this is a bug, so have it looked at; nothing else was touched"

_UNLUCKY: Final[Mapping[int | None, str]] = {
    None: "lost its parent, and was ended",
    -signal.SIGKILL: "was killed (SIGKILL), perhaps for want of memory on the node",
}
_SIGNALS: Final[Mapping[int, str]] = {
    -signal.SIGXCPU: "took more processor time than its size allows (SIGXCPU)",
    -signal.SIGSYS: "made a system call that unpacking doesn't need, and was killed (SIGSYS)",
}

_decode = msgspec.msgpack.Decoder(Message).decode
_encode = msgspec.msgpack.Encoder().encode

_helper = workers.Helper("modelmount.snapshots.worker")
"""Of the whole process: starting one takes as long as unpacking a small archive."""


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
    order = Order(encoding, stream.size, limits, str(uncompressed) if uncompressed else None, _bounds(stream, limits))
    try:
        worker = _helper.start(_encode(order), [stream.fileno(), files])
    except OSError as e:
        if e.errno in {errno.EAGAIN, errno.ENOMEM}:
            raise Unavailable(
                f"no process to unpack in can be started now ({e.strerror}); the driver's pod may need a higher limit "
                "of processes or memory"
            ) from e
        raise Internal(f"no process to unpack in can be started ({e.strerror}); run `modelmount doctor`") from e
    talk = _Talk(worker, stream, encoding, limits)

    def look() -> None:
        if cancelled():
            raise Cancelled("unpacking was stopped; what was downloaded is kept")
        unpack.require_space(files, limits)  # it should see to that itself

    try:
        talk.serve(look)
    finally:
        ended = worker.end()
        _take_back(files)
    if ended.status is None:  # with nobody to say that it is gone, it may still write
        raise _ended(ended)
    talk.require_whole()
    _take_over(files, talk.members)
    return talk.members


def _bounds(stream: Stream, limits: unpack.Limits) -> confine.Limits:
    memory = min(MOST_MEMORY_BYTES, stream.size * MEMORY_PER_BYTE)
    return confine.Limits(
        memory_bytes=MEMORY_BYTES + memory,
        cpu_seconds=CPU_SECONDS + CPU_SECONDS_PER_GIB * limits.bytes // (1 << 30),
        file_bytes=limits.bytes,
        descriptors=DESCRIPTORS,
    )


class _Talk:
    """With one worker, from its start to its last word."""

    def __init__(self, worker: Worker, stream: Stream, encoding: Encoding, limits: unpack.Limits) -> None:
        self.members: list[Member] = []
        self._worker, self._stream, self._encoding, self._limits = worker, stream, encoding, limits
        self._granted = 0
        self._names: set[str] = set()
        self._total = self._characters = 0

    def serve(self, look: Callable[[], None]) -> None:
        """Answer until it is done, and `look` now and then. Raises what that raises, what the process refuses with, and
        UnpackingFailed when it ends or does what it must not.
        """
        self._worker.control.settimeout(_LOOK_SECONDS)
        heard = looked = time.monotonic()
        while True:
            if time.monotonic() - looked >= _LOOK_SECONDS:
                look()
                looked = time.monotonic()
            try:
                data = self._worker.control.recv(workers.MESSAGE_BYTES)
            except TimeoutError:
                if time.monotonic() - heard > SILENT_SECONDS:
                    raise _failed(f"did nothing for {SILENT_SECONDS:.0f} seconds") from None
                continue
            except ConnectionError:
                data = b""
            if not data:
                raise _ended(self._worker.end())
            match self._decoded(data):
                case More(position):
                    self._grant(position)
                case Found(members):
                    self._note(members)
                case Refused() as refused:
                    _raise(refused)
                case Done():
                    return
            heard = time.monotonic()

    def require_whole(self) -> None:
        """What can be said only after its last word."""
        if not self._encoding.is_archive and len(self.members) != 1:
            raise _misbehaved()

    def _decoded(self, data: bytes) -> Message:
        try:
            message: Message = _decode(data)
            return message
        except (msgspec.DecodeError, ValueError) as e:
            raise _misbehaved() from e

    def _grant(self, position: int) -> None:
        if position != self._granted or position == self._stream.size:
            raise _misbehaved()
        self._granted = self._stream.limit(position)
        try:
            self._worker.control.send(self._granted.to_bytes(8, "little"))
        except (ConnectionError, TimeoutError):
            return  # it ended, which the next look shows, or it takes no answers, which ends it

    def _note(self, members: Iterable[Member]) -> None:
        for member in members:
            try:
                self._check(member)
            except BadArtifact as e:
                raise _misbehaved() from e
            self.members.append(member)

    def _check(self, member: Member) -> None:
        """As if the name came straight from the archive: it did."""
        path, ordinal = member.path, len(self.members)
        if member.number != ordinal or ordinal >= self._limits.entries:
            raise _misbehaved()
        if member.is_file:
            self._total += member.size
            is_hashed = len(member.sha256) == 64 and not member.sha256.strip("0123456789abcdef")
            if member.size < 0 or self._total > self._limits.bytes or not is_hashed or member.target:
                raise _misbehaved()
        elif member.size or member.sha256 or (member.is_directory and (member.special or member.target)):
            raise _misbehaved()
        if self._encoding.is_rootfs:
            self._characters += len(path) + len(member.target)
            tarstream.check_rootfs(path, member.special, member.target, self._characters)
        elif member.special or member.target or path in self._names:
            raise _misbehaved()
        elif self._encoding.is_archive:
            self._names.add(path)
            if paths.check(path) != path:
                raise _misbehaved()
        elif path or member.is_directory:
            raise _misbehaved()


def _raise(refused: Refused) -> NoReturn:
    message = "".join(c if c.isprintable() else "?" for c in refused.message[:_MESSAGE_CHARACTERS])
    match refused.error:
        case "artifact":
            raise BadArtifact(message)
        case "space":
            raise NoSpace(message)
        case "disk":
            if refused.errno in {errno.EFBIG, errno.EMFILE}:
                raise _failed("wrote more than it may")
            raise OSError(refused.errno, message)
        case "memory":
            raise BadArtifact("it takes more memory to unpack than its size allows; push the model again, unpacked")
        case "machine":
            raise Internal(
                f"the process that unpacks can't give up its rights ({message}), so nothing is unpacked; run "
                "`modelmount doctor`"
            )
        case _:
            raise _failed(f"failed ({message})")


def _ended(ended: Ended) -> ModelMountError:
    if ended.status in _UNLUCKY:
        return UnpackingFailed(f"the process that unpacks it {_UNLUCKY[ended.status]}; it is tried again")
    return _failed(_SIGNALS.get(ended.status or 0, f"didn't come to its end: {ended.cause}"))


def _misbehaved() -> UnpackingFailed:
    return _failed("said or made what it never should, and was killed")


def _failed(what: str) -> UnpackingFailed:
    return UnpackingFailed(f"the process that unpacks it {what}; {_CRASHES}")


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
                raise _misbehaved()
            if (status.st_uid, status.st_gid) != (user, group):
                os.chown(entry.name, user, group, dir_fd=files, follow_symlinks=False)
            atomic.seal_beneath(files, entry.name)
    if expected:
        raise _misbehaved()
