"""A link with latency: two network namespaces of our own, joined by a program that holds every packet for a while.

Kernels without netem still have this: each namespace has a TUN device (Documentation/networking/tuntap.rst) whose
packets pass through `python -m bench.link`. TCP is the kernel's own on both sides, so windows, slow start and round
trips are real; packets are handed over as the kernel's 64-KiB segments (IFF_VNET_HDR), never lost and never reordered.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Self

from bench.processes import FailedError

SERVER_ADDRESS = "198.18.0.1"
"""Of the range for benchmarks (RFC 2544); it exists in these namespaces only."""
CLIENT_ADDRESS = "198.18.0.2"

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
_PACKET_BYTES = 10 + 0x10000
"""A struct virtio_net_hdr and the largest IP packet."""
_QUEUE = 4096


class Link:
    """Both namespaces and the program between `__enter__` and `__exit__`. One thread at a time: it is the calling
    thread that moves, and what it starts.
    """

    def __init__(self, round_trip_seconds: float) -> None:
        """Nothing exists yet."""
        self._delay = round_trip_seconds / 2
        self._stack = contextlib.ExitStack()
        self._spaces: dict[str, int] = {}

    def __enter__(self) -> Self:
        with self._stack:
            home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, home)
            self._spaces["home"] = home
            tuns = []
            for name, address in (("server", SERVER_ADDRESS), ("client", CLIENT_ADDRESS)):
                tuns.append(self._make(name, address))
            command = [sys.executable, "-m", "bench.link", str(self._delay), *map(str, tuns)]
            process = subprocess.Popen(command, pass_fds=tuns, stdin=subprocess.DEVNULL)
            self._stack.callback(process.wait)
            self._stack.callback(process.kill)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """In the block the calling thread is in the namespace `server` or `client`."""
        self._enter(name)
        try:
            yield
        finally:
            self._enter("home")

    def _make(self, name: str, address: str) -> int:
        """A namespace with a device; the device's descriptor."""
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        try:
            space = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, space)
            self._spaces[name] = space
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            self._stack.callback(os.close, tun)
            flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"bench0", flags))
            fcntl.ioctl(tun, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
            for words in (
                "link set lo up",
                f"addr add {address}/24 dev bench0",
                f"link set bench0 txqueuelen {_QUEUE} up",
            ):
                subprocess.run(["ip", *words.split()], check=True)
            return tun
        finally:
            self._enter("home")

    def _enter(self, name: str) -> None:
        _check(_libc.setns(self._spaces[name], _CLONE_NEWNET), "setns")


def _check(result: int, call: str) -> None:
    if result != 0:
        raise FailedError(f"{call}: {os.strerror(ctypes.get_errno())}")


def carry(delay: float, one: int, other: int) -> None:
    """Pass packets between two devices, each `delay` seconds after it came, until killed."""
    waiting: dict[int, deque[tuple[float, bytes]]] = {one: deque(), other: deque()}  # by where they go
    ends = {one: other, other: one}
    poll = select.epoll()
    for end in ends:
        poll.register(end, select.EPOLLIN)
    while True:
        due = min((queue[0][0] for queue in waiting.values() if queue), default=None)
        for source, _ in poll.poll(None if due is None else max(0.0, due - time.monotonic())):
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = os.read(source, _PACKET_BYTES)
                    waiting[ends[source]].append((time.monotonic() + delay, packet))
        now = time.monotonic()
        for end, queue in waiting.items():
            while queue and queue[0][0] <= now:
                os.write(end, queue.popleft()[1])


if __name__ == "__main__":
    carry(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
