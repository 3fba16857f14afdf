"""Workers that were taken over: as root and without any bounds, to see that their word and their files count nothing.

An order's limit of bytes names the trick, for an order has no room for words.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec

from modelmount.formats.base import Member
from modelmount.snapshots.worker import Done, Found, More, Order, Reached, Refused, encode

SHA256 = "0" * 64
SLEEPS, FILLS = 1, 2
ROOTFS = 1000
"""Tricks from here on are about layers of container images."""
READING = 10_000
"""And from here on about headers of uncompressed archives."""


def prepare() -> None:
    """Nothing to set up."""


def work(order: bytes, control: socket.socket, descriptors: Sequence[int], parent: int) -> None:
    """Play the trick."""
    decoded: Order = msgspec.msgpack.decode(order, type=Order)
    trick = decoded.limits.bytes
    if trick == SLEEPS:
        threading.Event().wait()
    if trick == FILLS:
        _fill(descriptors[1])
    if trick >= READING:
        if trick in FOLLOWERS:
            control.recv(1 << 17)
        {**FOLLOWERS, **READERS}[trick](control, -1)
        threading.Event().wait()
    TRICKS[trick](control, descriptors[1])


def _make(files: int, name: str, data: bytes = b"data", mode: int = 0o444) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=files)
    os.write(fd, data)
    os.fchmod(fd, mode)
    os.close(fd)


def _say(control: socket.socket, *members: Member) -> None:
    control.send(encode(Found(list(members))))
    control.send(encode(Done()))


def _file(path: str, number: int = 0, size: int = 4, sha256: str = SHA256) -> Member:
    return Member(number, path, False, size, sha256)


def _claims(*members: Member) -> Callable[[socket.socket, int], None]:
    def trick(control: socket.socket, files: int) -> None:
        for member in members:
            if member.is_file:
                _make(files, str(member.number), bytes(max(0, min(member.size, 100))))
        _say(control, *members)

    return trick


def _makes(make: Callable[[int], None], size: int = 4) -> Callable[[socket.socket, int], None]:
    def trick(control: socket.socket, files: int) -> None:
        make(files)
        _say(control, _file("a", size=size))

    return trick


def _says(*messages: bytes) -> Callable[[socket.socket, int], None]:
    def trick(control: socket.socket, files: int) -> None:
        for message in messages:
            control.send(message)
        control.recv(1)

    return trick


def _dies(number: int) -> Callable[[socket.socket, int], None]:
    return lambda control, files: os.kill(os.getpid(), number)


def _leaves(status: int) -> Callable[[socket.socket, int], None]:
    return lambda control, files: os._exit(status)


def _fill(files: int) -> None:
    fd = os.open("0", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=files)
    for _ in range(48):
        os.write(fd, bytes(1 << 20))
    threading.Event().wait()


def _two(files: int) -> None:
    _make(files, "0")
    _make(files, "1")


def _linked(files: int) -> None:
    _make(files, "0")
    os.link("0", "../copy", src_dir_fd=files, dst_dir_fd=files)


def _symlink(files: int) -> None:
    os.symlink("/etc/passwd", "0", dir_fd=files)


TRICKS: Mapping[int, Callable[[socket.socket, int], None]] = {
    100: _claims(_file("../escape")),
    101: _claims(_file("/etc/passwd")),
    102: _claims(_file("a/./b")),
    103: _claims(_file("a\x1b")),
    104: _claims(_file("a"), _file("a", 1)),
    105: _claims(_file("a", number=7)),
    106: _claims(_file("a", size=-1)),
    107: _claims(_file("a", size=1 << 40)),
    108: _claims(_file("a", sha256="")),
    109: _claims(_file("a", sha256="G" * 64)),
    110: _claims(Member(0, "a", True, 5, "")),
    111: _claims(Member(0, "a", False, 0, "", "symlink", "/etc")),
    112: _claims(Member(0, "a", True, 0, "", "", "/etc")),
    113: _claims(*(Member(n, f"d{n}", True, 0, "") for n in range(6))),
    120: _makes(lambda files: None),
    121: _makes(lambda files: _make(files, "0", b"longer")),
    122: _makes(_two),
    123: _makes(_symlink),
    124: _makes(lambda files: os.mkfifo("0", dir_fd=files), 0),
    125: _makes(lambda files: os.mknod("0", 0o20444, 0x103, dir_fd=files), 0),
    126: _makes(lambda files: os.mkdir("0", 0o444, dir_fd=files), 0),
    127: _makes(lambda files: _make(files, "0", mode=0o4755)),
    128: _makes(lambda files: _make(files, "0", mode=0o2444)),
    129: _makes(lambda files: _make(files, "0", mode=0o644)),
    130: _makes(_linked),
    131: _makes(lambda files: _make(files, "name")),
    140: _says(b"garbage"),
    141: _says(b"\xc1" * 4000),
    142: _says(encode({"type": "found", "members": [{"number": "x"}]})),
    143: _says(encode({"type": "found", "members": [{"number": (1 << 64) - 1, "path": "a"}]})),
    144: _says(encode(More(5))),
    145: _says(encode(More(-1))),
    146: _says(encode(Refused("unexpected", "boom\n\x1b[2J" + "x" * 100_000))),
    150: _leaves(0),
    151: _leaves(3),
    152: _dies(signal.SIGSEGV),
    153: _dies(signal.SIGABRT),
    154: _dies(signal.SIGSYS),
    155: _dies(signal.SIGXCPU),
    156: _dies(signal.SIGKILL),
    ROOTFS + 0: _claims(_file("../escape")),
    ROOTFS + 1: _claims(_file("/abs")),
    ROOTFS + 2: _claims(_file("a/../../b")),
    ROOTFS + 3: _claims(Member(0, "a", False, 0, "", "hardlink", "../x")),
    ROOTFS + 4: _claims(Member(0, "a", False, 0, "", "warp gate", "x")),
    ROOTFS + 5: _claims(Member(0, "a", False, 0, "", "named pipe", "x")),
    ROOTFS + 6: _claims(_file("a" * 5000)),
    ROOTFS + 7: _claims(_file("/".join("a" * 200))),
}


def _reached(*places: tuple[int, int], position: int, over: bool = False) -> Callable[[socket.socket, int], None]:
    return _says(encode(Reached(list(places), position, over)))


def _tells(*members: Member) -> Callable[[socket.socket, int], None]:
    return lambda control, files: _say(control, *members)


def _entry(path: str, number: int = 512, size: int = 4, sha256: str = "") -> Member:
    return Member(number, path, False, size, sha256)


MISLEADERS: Mapping[int, Callable[[socket.socket, int], None]] = {
    # Of an archive of 8 KiB, after the first 512 bytes were handed in: the truth is ((512, 1000), 2048).
    READING + 0: _reached((512, 1000), position=512),  # not behind the member
    READING + 1: _reached((512, 1000), position=1 << 20),
    READING + 2: _reached((512, 1000), position=-1),
    READING + 3: _reached((0, 1000), position=1024),  # no room for a header
    READING + 4: _reached((511, 1000), position=2048),
    READING + 5: _reached((1024, 1000), position=2560),  # a header that wasn't handed in
    READING + 6: _reached((512, 1 << 40), position=512 + (1 << 40)),
    READING + 7: _reached((512, -512), position=512),
    READING + 8: _reached((512, 0), position=512),
    READING + 9: _reached((512, 8192), position=8704),  # beyond the archive's end
    READING + 10: _reached((512, 100), (512, 100), position=1024),  # twice
    READING + 11: _reached(position=0),  # nothing was read
    READING + 12: _reached(position=1024, over=True),
    READING + 13: _reached(position=-1, over=True),
    READING + 14: _reached((512, 1000), position=512, over=True),
    READING + 20: _says(b"garbage"),
    READING + 21: _says(encode(Found([_entry("a")]))),
    READING + 22: _says(encode(More(0))),
    READING + 23: _says(encode(Done())),
    READING + 24: _says(encode({"type": "reached", "places": [["x", 1]], "position": 1})),
    READING + 25: _says(encode({"type": "reached", "places": [[(1 << 64) - 1, 1]], "position": (1 << 64) - 1})),
    READING + 26: _says(encode(Refused("unexpected", "boom"))),
    READING + 27: _says(encode(Refused("memory", ""))),
    READING + 30: _leaves(0),
    READING + 31: _dies(signal.SIGSEGV),
    READING + 32: _dies(signal.SIGSYS),
    READING + 33: _dies(signal.SIGXCPU),
}
KILLED = READING + 40
FOLLOWERS = {**MISLEADERS, KILLED: _dies(signal.SIGKILL)}

READERS: Mapping[int, Callable[[socket.socket, int], None]] = {
    READING + 100: _tells(_entry("../escape")),
    READING + 101: _tells(_entry("/etc/passwd")),
    READING + 102: _tells(_entry("a"), _entry("a", 1536)),
    READING + 103: _tells(_entry("a", number=0)),
    READING + 104: _tells(_entry("a", number=513)),
    READING + 105: _tells(_entry("a", number=-512)),
    READING + 106: _tells(_entry("a"), _entry("b", 1024)),  # no room for a header between
    READING + 107: _tells(_entry("a", size=-1)),
    READING + 108: _tells(_entry("a", size=1 << 40)),
    READING + 109: _tells(_entry("a", size=8192)),
    READING + 110: _tells(_entry("a", sha256=SHA256)),
    READING + 111: _tells(Member(512, "a", True, 5, "")),
    READING + 112: _tells(Member(512, "a", False, 0, "", "symlink", "/etc")),
    READING + 113: _tells(Member(512, "a", True, 0, "", "", "/etc")),
    READING + 114: _tells(*(Member(512 * n, f"d{n}", True, 0, "") for n in range(1, 7))),  # more than allowed
    READING + 120: _says(encode(Reached([], 0))),
    READING + 121: _says(encode(More(0))),
    READING + 122: _says(b"garbage"),
    READING + 130: _leaves(0),
    READING + 131: _dies(signal.SIGSEGV),
    READING + 132: _dies(signal.SIGKILL),
    READING + 133: _says(encode(Refused("unexpected", "boom"))),
}
