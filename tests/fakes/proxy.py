"""A TCP proxy in front of a registry that slows connections down or cuts them, for faults that a healthy server never
shows. Below HTTP, so that requests and the registry's log stay the real ones.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.fakes.registry import Tls

BUFFER_BYTES = 16 << 10
_TICK_SECONDS = 0.01


class Proxy:
    """Forwards a free port of `address` to `port` there between `__enter__` and `__exit__`; a thread for each
    direction.

    `rate` is the most bytes a second that all answers together get, `cut_after` the bytes of answer after which each
    connection is reset, `hold_at` the bytes of all answers together after which nothing more passes; all may be changed
    while it runs, None is off. `passed` counts the bytes of answers.
    """

    def __init__(
        self,
        port: int,
        *,
        rate: float | None = None,
        cut_after: int | None = None,
        hold_at: int | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.rate = rate
        self.cut_after = cut_after
        self.hold_at = hold_at
        self.tls: Tls | None = None
        self.passed = 0
        self._upstream = (address, port)
        self._budget = 0.0
        self._filled_at = time.monotonic()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._listener = socket.create_server((address, 0))
        self.port = self._listener.getsockname()[1]
        self.host = f"{address}:{self.port}"

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for peer in self._sockets:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _spawn(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, name="proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
                # A small window: what was sent and not read yet is little, so that a rate is a rate.
                server = socket.socket()
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
            except OSError:
                return  # the listener was closed
            try:
                server.connect(self._upstream)
            except OSError:
                server.close()
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            self._spawn(self._serve, client, server)

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        asking = threading.Thread(target=self._ask, args=(client, server), name="proxy-ask", daemon=True)
        asking.start()
        whole = self._answer(server, client)
        with contextlib.suppress(OSError):
            # Reading ends first, and without a word to the peer: while a thread receives, a close sends nothing.
            client.shutdown(socket.SHUT_RDWR if whole else socket.SHUT_RD)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        asking.join()
        if not whole:  # linger 0: the peer gets a reset, not an orderly end
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with self._lock:
            self._sockets -= {client, server}
        client.close()
        server.close()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(BUFFER_BYTES):
                server.sendall(data)
        with contextlib.suppress(OSError):  # also after a reset, as of a client that was killed
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket) -> bool:
        """Pass answers on until they end; False when they were cut."""
        sent = 0
        with contextlib.suppress(OSError):
            while not self._closing and (data := server.recv(BUFFER_BYTES)):
                limit = self.cut_after
                if limit is not None and sent + len(data) > limit:
                    client.sendall(data[: max(0, limit - sent)])
                    return False
                self._spend(len(data))
                client.sendall(data)
                sent += len(data)
                with self._lock:
                    self.passed += len(data)
        return True

    def _spend(self, count: int) -> None:
        """Wait until `count` bytes fit into the rate; asked anew each tick, so that a changed rate acts at once."""
        while not self._closing:
            held = self.hold_at
            if held is not None and self.passed >= held:
                time.sleep(_TICK_SECONDS)
                continue
            rate = self.rate
            if rate is None:
                return
            with self._lock:
                now = time.monotonic()
                self._budget = min(self._budget + (now - self._filled_at) * rate, max(rate * 0.1, float(count)))
                self._filled_at = now
                if self._budget >= count:
                    self._budget -= count
                    return
            time.sleep(_TICK_SECONDS)
