"""What a confined process tries, one deed an order. It tells what came of it, unless it isn't there any more."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

from modelmount.system import confine

LIMITS = confine.Limits(memory_bytes=512 << 20, cpu_seconds=1, file_bytes=1 << 20, descriptors=16)


def prepare() -> None:
    """Nothing to set up."""


def work(order: bytes, control: socket.socket, descriptors: Sequence[int], parent: int) -> None:
    """Be confined, and do what the order says."""
    confine.enter(descriptors[0], LIMITS, parent)
    control.send(b"confined")
    deed = DEEDS[order.decode()]
    try:
        result = deed(descriptors[0])
        control.send(b"done" if result is None else str(result).encode())
    except OSError as e:
        control.send(errno.errorcode[e.errno or 0].encode())
    except MemoryError:
        control.send(b"MemoryError")
    control.recv(1)  # until it is ended


def _make(name: str, directory: int) -> None:
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory))


def _read_back(directory: int) -> None:
    _make("made", directory)
    os.open("made", os.O_RDONLY, dir_fd=directory)


def _write_much(directory: int) -> None:
    fd = os.open("much", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
    while True:
        os.write(fd, bytes(1 << 18))


def _open_many(directory: int) -> None:
    for n in range(100):
        os.open(f"many-{n}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)


def _spin(directory: int) -> None:
    while True:
        pass


def _thread(directory: int) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(os.getpid()))
    thread.start()
    thread.join()
    return len(found)


def _unshare(directory: int) -> None:
    ctypes.CDLL(None).unshare(0x20000)


DEEDS: Mapping[str, Callable[[int], object]] = {
    "nothing": lambda directory: None,
    "make a file": lambda directory: _make("7", directory),
    "make a file above": lambda directory: _make("../7", directory),
    "make a file elsewhere": lambda directory: _make("/tmp/modelmount-escaped", directory),
    "make a file in the root": lambda directory: _make("/modelmount-escaped", directory),
    "read a file of the system": lambda directory: os.open("/etc/passwd", os.O_RDONLY),
    "read what it made": _read_back,
    "read its own memory": lambda directory: os.open("/proc/self/mem", os.O_RDONLY),
    "list the directory": os.listdir,
    "make a link": lambda directory: os.symlink("/etc", "link", dir_fd=directory),
    "make a hard link": lambda directory: os.link("/etc/passwd", "hard", dst_dir_fd=directory),
    "make a directory": lambda directory: os.mkdir("d", dir_fd=directory),
    "make a device": lambda directory: os.mknod("null", 0o20666, 0x103, dir_fd=directory),
    "make a pipe": lambda directory: os.mkfifo("pipe", dir_fd=directory),
    "remove": lambda directory: os.unlink("victim", dir_fd=directory),
    "rename": lambda directory: os.rename("victim", "8", src_dir_fd=directory, dst_dir_fd=directory),
    "give a file away": lambda directory: os.chown(".", 0, 0, dir_fd=directory),
    "start a process": lambda directory: os.fork(),
    "run a program": lambda directory: os.execv("/bin/true", ["true"]),
    "become root": lambda directory: os.setuid(0),
    "open a connection": lambda directory: socket.socket(),
    "kill its parent": lambda directory: os.kill(os.getppid(), 9),
    "leave its namespace": _unshare,
    "make code": lambda directory: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "crash": lambda directory: ctypes.string_at(0),
    "start a thread": _thread,
    "take memory": lambda directory: bytearray(1 << 30),
    "write much": _write_much,
    "open many": _open_many,
    "take time": _spin,
}
