"""From a name to a connected socket: resolved with a deadline, judged address by address, connected to exactly what was
judged.

A name is looked up once for a connection, and only addresses that were looked at are connected to, so that a name that
changes its mind between check and use gains nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from modelmount.errors import Forbidden, Unavailable
from modelmount.transport import addresses
from modelmount.transport.addresses import Reach

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Found = Sequence[tuple[int, int, int, str, Any]]
"""What getaddrinfo(3) found: family, type, protocol, canonical name, address."""
STOPPING: Final = "isn't waited for any more, because the driver is stopping; the next one goes on from here"
"""What is said of the other side when a wait was interrupted."""
SLACK: Final = 0.01
"""Of a timeout: as much longer or shorter is as good."""
Lookup = Callable[..., Found]
"""`socket.getaddrinfo`, or something that is called like it."""


class Interrupted(OSError):
    """Nobody waits for this any more: the process is stopping."""


class Timed(socket.socket):
    """A socket that can have a deadline for many receives together, where a timeout is for one, and that another thread
    can interrupt.

    `deadline` is of `time.monotonic`; while it is set, a receive beyond it raises TimeoutError, and the timeout is
    spent: set another before receiving without a deadline. Setting a timeout is a system call, of which each request
    would make four for next to the same: so one that differs by no more than SLACK stays as it is.
    """

    deadline: float | None = None
    interrupted = False

    def settimeout(self, value: float | None) -> None:
        """As of any socket, but for SLACK."""
        now = self.gettimeout()
        if value is None or now is None or abs(now - value) > SLACK * value:
            super().settimeout(value)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive as any socket does, but not beyond the deadline. Raises Interrupted."""
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the deadline is over")
            timeout = self.gettimeout()
            if timeout is None or left < timeout:
                self.settimeout(left)
        try:
            count = super().recv_into(buffer, nbytes or 0, flags)
        except OSError as e:
            if self.interrupted:
                raise Interrupted from e
            raise
        if not count and self.interrupted:
            raise Interrupted
        return count

    def interrupt(self) -> None:
        """End whatever another thread waits for on this socket, which can't be used any more."""
        self.interrupted = True
        with contextlib.suppress(OSError):  # it isn't connected, or closed meanwhile
            socket.socket.shutdown(self, socket.SHUT_RDWR)  # not TLS's own, which takes its state from under a reader


class Sockets:
    """The open sockets of one pool, kept so that all can be interrupted at once. Thread-safe."""

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[Timed] = weakref.WeakSet()
        self._interrupted = False

    def add(self, sock: Timed) -> None:
        """Keep it, before anything is waited for on it. Raises Interrupted once all were."""
        with self._lock:
            if self._interrupted:
                raise Interrupted
            self._open.add(sock)

    def interrupt(self) -> None:
        """Interrupt all, and whatever is added later."""
        with self._lock:
            self._interrupted = True
            for sock in self._open:
                sock.interrupt()


class TimedTls(Timed, ssl.SSLSocket):
    """The same over TLS. Made by an SSLContext whose `sslsocket_class` it is: one of `of(…)`, for a socket that was
    wrapped is another object.
    """

    sockets: ClassVar[Sockets]

    @classmethod
    def of(cls, sockets: Sockets) -> type[TimedTls]:
        """The class of those that are kept in `sockets`."""
        return type("TimedTls", (cls,), {"sockets": sockets})

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands as any TLS socket does. Raises Interrupted."""
        self.sockets.add(self)
        try:
            super().do_handshake(block)
        except OSError as e:
            if self.interrupted:
                raise Interrupted from e
            raise


class Dialer:
    """Resolves and connects. Thread-safe; lookups of one name at the same time are one lookup."""

    def __init__(self, lookup: Lookup = socket.getaddrinfo, sockets: Sockets | None = None) -> None:
        """`lookup` may block for as long as it likes: it runs in threads of its own, one a name. What is connected is
        kept in `sockets`.
        """
        self._lookup, self._sockets = lookup, sockets or Sockets()
        self._interrupted = False
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], _Question] = {}

    def connect(self, host: str, port: int, reach: Reach, timeout: float) -> Timed:
        """A connected socket with its timeout set to `timeout` seconds, in which name and connection must be had.

        Addresses are tried in the resolver's order, each with its share of the time. Raises Forbidden when the name has
        only addresses that `reach` doesn't cover, Unavailable for everything else.
        """
        deadline = time.monotonic() + timeout
        found = self._resolve(host, port, timeout)
        refused = [addresses.refusal(each[4][0], reach) for each in found]
        candidates = [each for each, kind in zip(found, refused, strict=True) if kind is None]
        if not candidates:
            raise Forbidden(
                f"{host} is a {refused[0]} address, and those are not connected to; only the admin can allow that, by "
                "naming the host in registries"
            )
        failure: OSError | None = None
        for tried, (family, kind, protocol, _, address) in enumerate(candidates):
            share = max(0.001, deadline - time.monotonic()) / (len(candidates) - tried)
            try:
                return self._connected(Timed(family, kind, protocol), address, share, timeout)
            except OSError as e:
                failure = e
        raise Unavailable(f"{host}:{port} {_why(failure)}", unreachable=True) from failure

    def interrupt(self) -> None:
        """End all waiting for names, now and later; connections are the sockets' own matter."""
        with self._lock:
            self._interrupted = True
            for question in self._running.values():
                question.answered.set()

    def _resolve(self, host: str, port: int, timeout: float) -> Found:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return self._ask(host, port, timeout)
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    def _ask(self, host: str, port: int, timeout: float) -> Found:
        key = (host, port)
        with self._lock:
            question = self._running.get(key)
            if question is None:
                question = self._running[key] = _Question()
                threading.Thread(
                    target=self._run, args=(key, question), name=f"resolve-{host}"[:40], daemon=True
                ).start()
        if not self._interrupted and not question.answered.wait(timeout):
            raise Unavailable(
                f"the node's DNS gave no answer for {host} in time; it may be down or overloaded", unreachable=True
            )
        if self._interrupted:
            raise Unavailable(f"{host} {_why(Interrupted())}")
        if question.error is not None:
            raise Unavailable(
                f"the name {host} doesn't resolve ({question.error.strerror}); check the reference's host and the "
                "node's DNS",
                unreachable=True,
            ) from question.error
        if not question.found:
            raise Unavailable(
                f"the name {host} has no address; check the reference's host and the node's DNS", unreachable=True
            )
        return question.found

    def _connected(self, sock: Timed, address: Any, share: float, timeout: float) -> Timed:
        try:
            self._sockets.add(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(share)
            sock.connect(address)
            sock.settimeout(timeout)
        except BaseException as e:
            sock.close()
            if sock.interrupted and isinstance(e, OSError):
                raise Interrupted from e
            raise
        return sock

    def _run(self, key: tuple[str, int], question: _Question) -> None:
        try:
            question.found = self._lookup(*key, type=socket.SOCK_STREAM)
        except OSError as e:
            question.error = e
        except UnicodeError:
            question.error = OSError(0, "it is no name that DNS can hold")
        finally:
            with self._lock:
                del self._running[key]
            question.answered.set()


class _Question:
    """One lookup under way and, once `answered`, its end."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.found: Found = ()
        self.error: OSError | None = None


def _why(failure: OSError | None) -> str:
    if isinstance(failure, Interrupted):
        return STOPPING
    if isinstance(failure, ConnectionRefusedError):
        return "refused the connection; is the registry running?"
    if isinstance(failure, TimeoutError):
        return "didn't take the connection in time; is it reachable from this node?"
    return f"can't be reached from this node ({failure.strerror if failure else 'no address'})"
