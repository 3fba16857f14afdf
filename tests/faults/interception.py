"""System calls of another process, decided here one by one: let through, failed with an errno, or answered with a kill
or a power cut (seccomp's user notification; Linux `Documentation/userspace-api/seccomp_filter.rst`).

It costs a tenth of what tracing does, counts for the process and not for each of its threads, and knows which file a
call is about.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import select
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Final

HEADERS: Final = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
"""Debian's linux-libc-dev."""

_BY_PATH: Final = {"open": 0, "rename": 0, "link": 0, "mkdir": 0, "unlink": 0, "rmdir": 0, "chmod": 0, "umount2": 0}
_BY_DIRECTORY_AND_PATH: Final = {
    "openat": (0, 1),
    "openat2": (0, 1),
    "renameat": (0, 1),
    "renameat2": (0, 1),
    "linkat": (0, 1),
    "mkdirat": (0, 1),
    "unlinkat": (0, 1),
    "fchmodat": (0, 1),
    "utimensat": (0, 1),
    "open_tree": (0, 1),
    "move_mount": (2, 3),
}
_BY_DESCRIPTOR: Final = {
    "read",
    "pread64",
    "preadv",
    "preadv2",
    "write",
    "pwrite64",
    "pwritev",
    "fsync",
    "fdatasync",
    "syncfs",
    "fchmod",
    "ftruncate",
    "getdents64",
    "flock",
}
_OF_NO_FILE: Final = {"mount_setattr"}
"""About a mount that is nowhere yet."""
CALLS: Final = (*_BY_PATH, *_BY_DIRECTORY_AND_PATH, *sorted(_BY_DESCRIPTOR), *_OF_NO_FILE)
"""What commits, publishes and sweeps are made of. Looks (stat) are left out: what can't be looked at can't be opened
either.
"""
CHANGING: Final = set(CALLS) - {"read", "pread64", "preadv", "preadv2", "getdents64", "flock", "openat2"}
"""Those that change something, but `openat` only where it creates."""

_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NOTICE = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_AT_FDCWD = 0xFFFFFF9C
_RANDOM = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])|(?<=127\.0\.0\.1:)[0-9]+")
_NAMES = re.compile(r"[0-9a-f]{32,128}|(?<=target-)[0-9a-f]{2}|(?<=pods/)[^/]+|(?<=/files/)[0-9]+")
_OWN_DESCRIPTOR = re.compile(r"/proc/self/fd/([0-9]+)")


@dataclass(frozen=True, slots=True)
class Call:
    """One call about a file below the watched directory. `place` is its path there; what is random in it is `*`."""

    name: str
    place: str
    thread: int
    creates: bool = False

    @property
    def changes(self) -> bool:
        """Whether it may leave something behind, locks aside."""
        return self.name in CHANGING and (self.name != "openat" or self.creates) and "store/locks/" not in self.place

    @property
    def kind(self) -> str:
        """Name and place, whichever model it is: calls of one kind are made by the same lines of the driver."""
        return f"{self.name} {_NAMES.sub('<>', self.place)}"


Decision = Callable[[Call], int]
"""What becomes of a call: 0 for what it would, else the errno that it fails with."""


def numbers() -> dict[str, int]:
    """The calls' numbers on this machine; empty where they can't be known."""
    header = HEADERS.get(platform.machine())
    if header is None or not header.exists():
        return {}
    defined = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE))
    return {name: int(defined[name]) for name in CALLS if name in defined}


def missing() -> str:
    """Why system calls can't be decided here; empty where they can."""
    if not numbers():
        return "the numbers of system calls are not known here (linux-libc-dev)"
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not actions.exists() or "user_notif" not in actions.read_text().split():
        return "this kernel asks nobody about system calls (seccomp's user notification)"
    return ""


def submit(talk: Connection) -> None:
    """In the process to be watched, before it has threads: from now on whoever has the other end of `talk` decides
    about its calls. Raises OSError where the kernel can't.
    """
    instruction = struct.Struct("=HBBI")
    body = [(_IF_EQUAL, 0, 1, number) for number in numbers().values()]
    code = instruction.pack(_LOAD, 0, 0, 4) + instruction.pack(_IF_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()])
    code += instruction.pack(_RETURN, 0, 0, _ALLOW) + instruction.pack(_LOAD, 0, 0, 0)
    code += b"".join(instruction.pack(*each) + instruction.pack(_RETURN, 0, 0, _ASK) for each in body)
    code += instruction.pack(_RETURN, 0, 0, _ALLOW)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    # Sends the descriptor first, by a number that is free: `sendmsg` itself is not asked about, but Python may write.
    listener = libc.syscall(
        ctypes.c_long(_SECCOMP[platform.machine()]),
        ctypes.c_long(_SET_MODE_FILTER),
        ctypes.c_long(_NEW_LISTENER),
        header,
    )
    if listener < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    send_handle(talk, listener, os.getppid())
    os.close(listener)


class Interceptor:
    """Answers for the process at the other end of `talk`, in a thread of its own, until that process is gone.

    `decide` may be changed at any time. Raises what `decide` raised at `close`.
    """

    def __init__(self, talk: Connection, directory: Path, decide: Decision) -> None:
        """Right after the other side's `submit`."""
        self.decide = decide
        self.error: BaseException | None = None
        self._prefix = f"{directory}/"
        self._numbers = {number: name for name, number in numbers().items()}
        self._listener = recv_handle(talk)
        self._thread = threading.Thread(target=self._run, name="interceptor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """After the process's end."""
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        try:
            while True:
                events = poll.poll()[0][1]
                if events & select.POLLIN:
                    self._answer()
                elif events & (select.POLLHUP | select.POLLERR):
                    return
        finally:
            os.close(self._listener)

    def _answer(self) -> None:
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, notice, True)
        except OSError as e:
            if e.errno in {errno.ENOENT, errno.EINTR}:
                return  # who asked is dead
            raise
        identity, thread, _, number, _, _, *arguments = _NOTICE.unpack(notice)
        failure = 0
        try:
            call = self._call(self._numbers[number], thread, arguments)
            if call is not None:
                failure = self.decide(call)
        except OSError:
            failure = 0  # who asked died meanwhile
        except BaseException as e:  # noqa: BLE001 - shown by close
            self.error = self.error or e
        answer = _ANSWER.pack(identity, 0, -failure, 0 if failure else _CONTINUE)
        try:
            fcntl.ioctl(self._listener, _SEND, answer)
        except OSError as e:
            if e.errno != errno.ENOENT:
                raise

    def _call(self, name: str, thread: int, arguments: Iterable[int]) -> Call | None:
        given = list(arguments)
        if name in _OF_NO_FILE:
            return Call(name, "", thread)
        if name in _BY_DESCRIPTOR:
            path = os.readlink(f"/proc/{thread}/fd/{given[0]}")
        elif name in _BY_PATH:
            path = self._path(thread, _AT_FDCWD, given[_BY_PATH[name]])
        else:
            directory, text = _BY_DIRECTORY_AND_PATH[name]
            path = self._path(thread, given[directory], given[text])
        if not path.startswith(self._prefix):
            return None
        creates = name == "openat" and bool(given[2] & os.O_CREAT)
        return Call(name, _RANDOM.sub("*", path.removeprefix(self._prefix)), thread, creates)

    def _path(self, thread: int, directory: int, address: int) -> str:
        text = self._text(thread, address) if address else ""
        if own := _OWN_DESCRIPTOR.fullmatch(text):
            return os.readlink(f"/proc/{thread}/fd/{own[1]}")
        if text.startswith("/"):
            return text
        where = "cwd" if directory & 0xFFFFFFFF == _AT_FDCWD else f"fd/{directory & 0xFFFFFFFF}"
        base = os.readlink(f"/proc/{thread}/{where}")
        return f"{base}/{text}" if text else base

    @staticmethod
    def _text(thread: int, address: int) -> str:
        memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY)
        try:
            data = os.pread(memory, 4096 - address % 4096, address)
            if b"\0" not in data:
                data += os.pread(memory, 4096, address + len(data))
        finally:
            os.close(memory)
        return os.fsdecode(data.partition(b"\0")[0])
