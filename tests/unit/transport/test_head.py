"""Heads of answers, from a socket: what they mean, and what is none."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from modelmount.transport.dial import Timed
from modelmount.transport.head import MAX_LINE_BYTES, MAX_LINES, Head

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Answered = Callable[..., Head]


@pytest.fixture
def answered() -> Iterator[Answered]:
    """The head of what another side sends, which then closes."""
    with ExitStack() as stack:

        def answered(sent: bytes, method: str = "GET", kind: type[Timed] = Timed) -> Head:
            ours, theirs = socket.socketpair()
            sock = stack.enter_context(kind(fileno=ours.detach()))
            sock.settimeout(30)
            with theirs:
                theirs.sendall(sent)
            head = Head(sock, method)
            stack.callback(head.close)
            head.begin()
            return head

        yield answered


def test_status_and_headers(answered: Answered) -> None:
    head = answered(
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nX-Empty:\r\nLink:  a \r\nlink: b\t\r\n"
        b"Folded: one\r\n\t two\r\nLatin: \xe9\x85\r\n\r\nbodyX"
    )
    assert (head.status, head.reason, head.version) == (206, "Partial Content", 11)
    assert head.fields.values == {
        "content-length": ["4"],
        "x-empty": [""],
        "link": ["a", "b"],
        "folded": ["one two"],
        "latin": ["\xe9\x85"],
    }
    assert [head.fields.get(name) for name in ("link", "x-empty", "date")] == ["a, b", "", None]
    assert (head.length, head.chunked, head.will_close) == (4, False, False)
    assert head.read() == b"body", "what came along with the head belongs to the body"


class Trickling(Timed):
    """Brings a few bytes at a time."""

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        return super().recv_into(memoryview(buffer)[:7], nbytes or 0, flags)


def test_a_head_in_pieces_is_the_same(answered: Answered) -> None:
    sent = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nLink:  a \r\nlink: b\t\r\nLatin: \xe9\n\r\nbodyX"
    whole, pieces = answered(sent), answered(sent, kind=Trickling)
    assert pieces.fields.values == whole.fields.values
    assert whole.fields.values == {"content-length": ["4"], "link": ["a", "b"], "latin": ["\xe9"]}
    assert whole.read() == pieces.read() == b"body"


@pytest.mark.parametrize("kind", [Timed, Trickling])
def test_a_head_may_have_so_many_lines_and_no_more(answered: Answered, kind: type[Timed]) -> None:
    most = b"HTTP/1.1 200 OK\r\n" + b"A: 1\r\n" * (MAX_LINES - 1)
    assert len(answered(most + b"\r\n", kind=kind).fields.values["a"]) == MAX_LINES - 1
    with pytest.raises(http.client.HTTPException, match=f"more than {MAX_LINES} lines"):
        answered(most + b"A: 1\r\n\r\n", kind=kind)


def test_a_status_line_may_lack_a_reason_and_lines_their_cr(answered: Answered) -> None:
    head = answered(b"HTTP/1.1 404\nContent-Length: 0\n\n")
    assert (head.status, head.reason, head.length) == (404, "", 0)


def test_what_is_said_in_between_is_skipped(answered: Answered) -> None:
    head = answered(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nA: 1\r\n\r\n"
    )
    assert (head.status, head.fields.values) == (200, {"a": ["1"]})


@pytest.mark.parametrize(
    ("sent", "method", "length", "chunked", "ends"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "GET", 7, False, False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: Close\r\n\r\n", "GET", 7, False, True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n", "GET", 7, False, True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\nConnection: keep-alive\r\n\r\n", "GET", 7, False, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 7\r\n\r\n", "GET", None, True, False),
        (b"HTTP/1.1 200 OK\r\n\r\n", "GET", None, False, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n", "GET", None, False, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "HEAD", 0, False, False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", 0, False, False),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", "GET", 0, False, False),
    ],
)
def test_how_the_body_ends(
    answered: Answered, sent: bytes, method: str, length: int | None, chunked: bool, ends: bool
) -> None:
    head = answered(sent, method)
    assert (head.length, head.chunked, head.will_close) == (length, chunked, ends)


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded first: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\rB: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * MAX_LINE_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: 1\r\n" * (MAX_LINES + 1) + b"\r\n",
    ],
)
def test_what_is_no_head(answered: Answered, sent: bytes) -> None:
    with pytest.raises(http.client.HTTPException) as e:
        answered(sent)
    assert not isinstance(e.value, http.client.RemoteDisconnected)


BLANKS = b" " * (MAX_LINE_BYTES // 2 - 100)


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200" + BLANKS + b"\r" + BLANKS + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: a" + BLANKS + b"a" + BLANKS + b"\0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: a\r\n" + BLANKS + b"a" + BLANKS + b"\0\r\n\r\n",
    ],
    ids=["status", "field", "folded"],
)
def test_a_line_of_blanks_is_no_work(answered: Answered, sent: bytes) -> None:
    """Who tried each run of them again and again would take hours, and hold everything else up."""
    with pytest.raises(http.client.HTTPException):
        answered(sent)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Length: 70"])
def test_a_head_that_ends_early_is_none(answered: Answered, sent: bytes) -> None:
    """A length that lost its last digit would cut the body short."""
    with pytest.raises(http.client.RemoteDisconnected):
        answered(sent)
