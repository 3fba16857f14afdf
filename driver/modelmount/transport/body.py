"""The body of an answer, read once.

The standard library's response copies what it reads. Below it is the file object of the socket: what came along with
the headers is in that one's buffer, and the rest is received from the socket itself, straight into the caller's view.
TLS hands over 16 KiB a call, so each layer in between is gone through 65,536 times a GiB. What the standard library
does not do is done here: bytes are counted against the declared length, a short body is an error, and a connection is
kept only after an exact count.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from modelmount.errors import Unavailable
from modelmount.transport.failures import TROUBLE, translated
from modelmount.transport.head import LENGTH, Head
from modelmount.transport.origin import Connection

GATHER_SECONDS: Final = 0.1
"""A read of a slow body returns what has come after this time, so that callers see progress and can stop."""
DISCARD_BYTES: Final = 64 << 10
"""Most of an unwanted body that is read to keep its connection."""
_PIECE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Pace:
    """The slowest that is put up with: `bytes` in each `seconds` spent on waiting for them. A timeout alone never
    strikes at a server that sends one byte now and then.
    """

    bytes: int = 64 << 10
    seconds: float = 60.0


class Body:
    """One body, for one reader in one thread; a context manager.

    `offset` is where its bytes begin in the whole that was asked for and `total` that whole's size where it is known:
    0 and None until somebody who knows ranges sets them. `length` is the number of bytes that the answer declares, None
    when only its end will tell. Closed early, it takes its connection along.
    """

    def __init__(self, head: Head, connection: Connection, what: str, server: str, pace: Pace) -> None:
        """Takes the answer over, and closes it when it raises Unavailable: for an encoded body, or a length that makes
        no sense. It came over `connection`; `what` and `server` are for messages.
        """
        if connection.answering is None:
            raise TypeError("nothing was answered over this connection")
        self.offset = 0
        self.total: int | None = None
        self._head, self._connection, self._socket = head, connection, connection.answering
        self._what, self._server, self._pace = what, server, pace
        self._receive: Callable[[memoryview], int] = self._receive_buffered if self.is_direct else self._receive_copy
        self._failure: Unavailable | None = None
        self._received = 0
        self._window_bytes, self._window_seconds = 0, 0.0
        self._open, self._ending = True, threading.Lock()
        self._hurries, self._low_water = False, 1
        try:
            self.length = self._declared()
        except Unavailable:
            self._drop()
            raise
        self._left = self.length

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_direct(self) -> bool:
        """Whether bytes are received into the caller's view without a copy; they aren't in chunked bodies."""
        return not self._head.chunked

    def readinto(self, view: memoryview) -> int:
        """Fill the front of a view of at least one byte; 0 means that the whole body was delivered.

        Fills all of it unless the body ends, fails, or comes slowly. What arrived before a failure is delivered first;
        then every call raises Unavailable: silence, a reset, fewer bytes than declared, a pace below the slowest.
        """
        self._raise_failure()
        if not self._open:
            return 0
        if self._left is not None:
            view = view[: self._left]
        filled, ended = 0, not view
        elapsed, began = 0.0, time.monotonic()
        try:
            self._wait_for(len(view))
            while filled < len(view) and elapsed < GATHER_SECONDS:
                count = self._receive(view[filled:])
                if not count:
                    ended = True
                    break
                filled += count
                elapsed = time.monotonic() - began
        except TROUBLE as e:
            filled += self._rescued(view[filled:])
            self._fail(translated(e, self._what, self._server), e)
        self._hurries = filled == len(view) and elapsed < GATHER_SECONDS
        self._count(filled, elapsed, ended=ended)
        if not filled:
            self._raise_failure()
        return filled

    def read_all(self, limit: int, deadline: float) -> bytes | None:
        """The whole body, and its connection kept; None, and the connection closed, when it has more than `limit`
        bytes.

        Raises Unavailable like `readinto`, and when it isn't there by `deadline` (of `time.monotonic`).
        """
        with self:
            if self.length is not None and self.length > limit:
                return None
            self._socket.deadline = deadline
            data = bytearray()
            piece = memoryview(bytearray(_PIECE_BYTES))
            while count := self.readinto(piece):
                data += piece[:count]
                if len(data) > limit:
                    return None
            return bytes(data)

    def interrupt(self) -> None:
        """End a read that waits for bytes, which raises Unavailable then; nothing, once the body is over. Any thread
        may.
        """
        with self._ending:
            if self._open:
                self._socket.interrupt()

    def close(self) -> None:
        """Give the connection back when the whole body was read, or else close it. Twice is harmless."""
        if not self._open:
            return
        if self._left == 0:
            self._finish()
        else:
            self._drop()

    # -- receiving

    def _wait_for(self, count: int) -> None:
        """While bytes come fast, have the kernel wake us once for the whole view, not for each packet: with many
        connections most of the time would go into waking up (man 7 socket, SO_RCVLOWAT). Not near the body's end, where
        so many never come: of the bytes that are left, TLS may hold a record decrypted and most of the next one.
        """
        enough = count >= _PIECE_BYTES and self._left is not None and self._left >= 2 * count + _PIECE_BYTES
        wanted = count if self._hurries and enough and self.is_direct else 1
        if wanted != self._low_water:
            self._low_water = wanted
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)

    def _rescued(self, view: memoryview) -> int:
        """What has come and was too little to wake us for."""
        if self._low_water == 1 or not view:
            return 0
        try:
            self._socket.settimeout(0)
            return self._socket.recv_into(view)
        except OSError:
            return 0  # nothing, or the connection is gone

    def _receive_buffered(self, view: memoryview) -> int:
        """What came along with the headers lies in the file object's buffer, and `read1` takes no more than that, or
        receives once where there is nothing. When it brings less than it may, its buffer is empty, and stays so.
        """
        wanted = min(len(view), _PIECE_BYTES)
        data = self._head.fp.read1(wanted)
        if len(data) < wanted:
            self._receive = self._socket.recv_into
        view[: len(data)] = data
        return len(data)

    def _receive_copy(self, view: memoryview) -> int:
        data = self._head.read1(len(view))
        view[: len(data)] = data
        return len(data)

    def _count(self, filled: int, elapsed: float, *, ended: bool) -> None:
        self._received += filled
        self._window_bytes += filled
        self._window_seconds += elapsed
        if self._left is not None:
            self._left -= filled
        if self._failure is not None:
            return
        if self._left == 0 or (ended and self._left is None):
            self._finish()
        elif ended:
            self._fail(
                Unavailable(
                    f"{self._what}: {self._server} ended the answer after {self._received} of {self.length} bytes"
                )
            )
        elif self._window_seconds >= self._pace.seconds:
            if self._window_bytes < self._pace.bytes:
                self._fail(
                    Unavailable(
                        f"{self._what}: {self._server} sent {self._window_bytes} bytes in "
                        f"{self._window_seconds:.0f} s, which is too slow to go on"
                    )
                )
            self._window_bytes, self._window_seconds = 0, 0.0

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: Unavailable, cause: Exception | None = None) -> None:
        failure.__cause__ = cause
        self._failure = failure
        self._drop()

    # -- the connection

    def _finish(self) -> None:
        """All bytes are here: the connection can serve the next request. It is closed by now where the answer said so,
        or where its end was the connection's.
        """
        with self._ending:  # from here on the socket may be somebody else's
            self._open = False
        self._socket.deadline = None
        self._head.close()
        self._connection.release()

    def _drop(self) -> None:
        with self._ending:
            self._open = False
        self._head.close()
        self._connection.close()

    # -- headers

    def _declared(self) -> int | None:
        fields = self._head.fields
        encodings = {value.strip().lower() for value in (fields.get("content-encoding") or "").split(",")}
        if encodings := encodings - {"", "identity"}:
            raise Unavailable(
                f"{self._what}: {self._server} sends it encoded ({ascii(min(encodings))[:40]}), which was not asked "
                "for; a proxy on the way must pass it on unchanged"
            )
        if self._head.length == 0:
            return 0  # also for a HEAD's answer, which declares what a GET's would have
        if self._head.chunked:
            return None
        values = {value.strip() for value in (fields.get("content-length") or "").split(",")} - {""}
        if not values:
            return None
        if len(values) > 1 or not LENGTH.fullmatch(value := min(values)):
            raise Unavailable(f"{self._what}: {self._server} declares a length that makes no sense")
        return int(value)
