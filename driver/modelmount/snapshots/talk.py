"""The driver's side of the talk with a process that reads an archive.

The process (`worker`) is trusted by nobody. What it says is checked as if the archive's publisher had said it.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, NoReturn, Self

import msgspec

from modelmount.errors import BadArtifact, Internal, ModelMountError, NoSpace, Unavailable, UnpackingFailed
from modelmount.formats import paths
from modelmount.formats.base import Member
from modelmount.snapshots import tarstream, unpack
from modelmount.snapshots.worker import Message, Order, Refused
from modelmount.system import confine, workers
from modelmount.system.workers import Ended

MEMORY_BYTES: Final = 512 << 20
"""Address space of such a process beyond the interpreter's: the largest window of zstd, and threads."""
MEMORY_PER_BYTE: Final = 8
MOST_MEMORY_BYTES: Final = 4 << 30
"""Names take memory. An honest archive has some bytes for each; this much for each of its bytes is enough for it."""
CPU_SECONDS: Final = 120
CPU_SECONDS_PER_GIB: Final = 60
"""Ten times what it takes of an old processor, by what it may unpack to."""
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

helper = workers.Helper("modelmount.snapshots.worker")
"""Of the whole process: starting one takes as long as unpacking a small archive."""


def prepare() -> None:
    """Begin to start what the processes are forked from, without waiting for it: an archive is to be read soon."""
    with contextlib.suppress(OSError):  # whoever needs it is told
        helper.prepare()


def bounds(size: int, limits: unpack.Limits) -> confine.Limits:
    """What a process may use for an archive of `size` bytes."""
    return confine.Limits(
        memory_bytes=MEMORY_BYTES + min(MOST_MEMORY_BYTES, size * MEMORY_PER_BYTE),
        cpu_seconds=CPU_SECONDS + CPU_SECONDS_PER_GIB * limits.bytes // (1 << 30),
        file_bytes=limits.bytes,
        descriptors=DESCRIPTORS,
    )


class Talk:
    """With one process, from its start to `end`; a context manager. One thread at a time."""

    def __init__(self, order: Order, descriptors: Sequence[int]) -> None:
        """Starts it. Raises Unavailable or Internal where there can't be one."""
        try:
            self._worker = helper.start(_encode(order), descriptors)
        except OSError as e:
            if e.errno in {errno.EAGAIN, errno.ENOMEM}:
                raise Unavailable(
                    f"no process to unpack in can be started now ({e.strerror}); the driver's pod may need a higher "
                    "limit of processes or memory"
                ) from e
            raise Internal(f"no process to unpack in can be started ({e.strerror}); run `modelmount doctor`") from e
        self._worker.control.settimeout(_LOOK_SECONDS)
        self._looked = time.monotonic()
        self.was_unlucky = False
        """Whether it ended by no fault of the archive's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """The process's, in the helper's process namespace."""
        return self._worker.pid

    def hear(self, look: Callable[[], None], silent_seconds: float) -> Message:
        """What it says next; `look` is called now and then meanwhile.

        Raises what that raises, and UnpackingFailed when it ends, says nothing for so long, or says nonsense.
        """
        heard = time.monotonic()
        while True:
            if time.monotonic() - self._looked >= _LOOK_SECONDS:
                look()
                self._looked = time.monotonic()
            try:
                data = self._worker.control.recv(workers.MESSAGE_BYTES)
            except TimeoutError:
                if time.monotonic() - heard > silent_seconds:
                    raise failed(f"did nothing for {silent_seconds:.0f} seconds") from None
                continue
            except ConnectionError:
                data = b""
            if not data:
                found = self._worker.end()
                self.was_unlucky = found.status in _UNLUCKY
                raise ended(found)
            try:
                message: Message = _decode(data)
            except (msgspec.DecodeError, ValueError) as e:
                raise misbehaved() from e
            return message

    def say(self, data: bytes | memoryview) -> None:
        """Answer it. Where it has ended, or takes no answers, what it is heard to say next shows it."""
        try:
            self._worker.control.send(data)
        except (ConnectionError, TimeoutError):
            return

    def end(self) -> Ended:
        """When it returns, the process is gone. Again is harmless."""
        return self._worker.end()


class Names:
    """What an archive's members are called, checked as if the names came straight from it: they did."""

    def __init__(self, *, rootfs: bool) -> None:
        """None was said yet."""
        self._rootfs = rootfs
        self._seen: set[str] = set()
        self._characters = 0

    def take(self, member: Member) -> None:
        """The next one's. Raises UnpackingFailed."""
        path = member.path
        if member.is_directory and (member.special or member.target):
            raise misbehaved()
        try:
            if self._rootfs:
                self._characters += len(path) + len(member.target)
                tarstream.check_rootfs(path, member.special, member.target, self._characters)
            elif member.special or member.target or path in self._seen or paths.check(path) != path:
                raise misbehaved()
            else:
                self._seen.add(path)
        except BadArtifact as e:
            raise misbehaved() from e


def raise_refused(refused: Refused) -> NoReturn:
    """Raise what a process refused with, as far as it is to be believed."""
    message = "".join(c if c.isprintable() else "?" for c in refused.message[:_MESSAGE_CHARACTERS])
    match refused.error:
        case "artifact":
            raise BadArtifact(message)
        case "space":
            raise NoSpace(message)
        case "disk":
            if refused.errno in {errno.EFBIG, errno.EMFILE}:
                raise failed("wrote more than it may")
            raise OSError(refused.errno, message)
        case "memory":
            raise BadArtifact("it takes more memory to unpack than its size allows; push the model again, unpacked")
        case "machine":
            raise Internal(
                f"the process that unpacks can't give up its rights ({message}), so nothing is unpacked; run "
                "`modelmount doctor`"
            )
        case _:
            raise failed(f"failed ({message})")


def ended(how: Ended) -> ModelMountError:
    """For a process that ended before its last word."""
    if how.status in _UNLUCKY:
        return UnpackingFailed(f"the process that unpacks it {_UNLUCKY[how.status]}; it is tried again")
    return failed(_SIGNALS.get(how.status or 0, f"didn't come to its end: {how.cause}"))


def misbehaved() -> UnpackingFailed:
    """For a process that says or makes what the real one never does."""
    return failed("said or made what it never should, and was killed")


def failed(what: str) -> UnpackingFailed:
    """For a process that didn't do its work, with why."""
    return UnpackingFailed(f"the process that unpacks it {what}; {_CRASHES}")
