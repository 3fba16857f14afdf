"""Everything that a registry, its storage and the way to them do wrong, played to a real pull from a real registry.

One row a case; the names begin with the number of the threat model's list where it is on it (H1 to H23). Whatever was
played: nothing wrong is ever visible, nothing is held afterwards, and once it is over a pull brings the model without
fetching a good byte twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from modelmount.config import Pull
from modelmount.errors import Forbidden, IntegrityError, ModelMountError, NotFound, Unauthenticated, Unavailable
from modelmount.transport.body import Pace
from tests.fakes.gateway import Act, Gateway, edit, header, instead, spoil
from tests.fakes.wire import Answer, Asked
from tests.faults.scene import (
    MIB,
    PATIENT,
    QUICK,
    WEIGHTS_BYTES,
    Scene,
    go_on,
    manifest,
)

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

AT = 2 * MIB + 77
"""Where bodies of the weights are cut."""
SECOND = f"bytes={AT}-"
"""What is asked for after such a cut: nothing before it, and nothing of it twice."""
USUAL = Pace()
SILENT = Answer(raw=b"", stall_after=0)


@dataclass(frozen=True)
class Case:
    """A row: what is done to which requests how often, and what comes of it.

    `concerns` is `manifest`, `go_on` or the name of a blob of the model. `cut` first cuts the
    weights at AT, so that a later fault meets a pull that goes on. `ends` and `saying` are the error that the pull ends
    with, None for a pull that succeeds all the same. `ranges` are the Range headers of the requests for the weights.
    `again` is how many bytes may be fetched a second time. A `barred` source isn't asked again before its time.
    """

    name: str
    concerns: str
    act: Act
    times: int | None = 1
    cut: bool = False
    ends: type[ModelMountError] | None = None
    saying: str = ""
    ranges: tuple[str, ...] | None = None
    again: int = 0
    barred: bool = False
    pull: Pull = PATIENT
    pace: Pace = USUAL


def status(code: int, *headers: tuple[str, str], body: bytes = b"") -> Act:
    return instead(Answer(code, body, headers))


def span(value: str | None) -> Act:
    """Another Content-Range."""
    return edit(lambda answer: header(answer, "Content-Range", value))


def longer(answer: Answer) -> Answer:
    return replace(answer, body=answer.body + b"x" * 1000)


def flipped(answer: Answer) -> Answer:
    at = len(answer.body) // 2
    return replace(answer, body=answer.body[:at] + bytes([answer.body[at] ^ 1]) + answer.body[at + 1 :])


def whole(asked: Asked, gateway: Gateway) -> Answer:
    """As if there were no ranges."""
    return gateway.forward(asked, without={"range"})


def lengths(*values: str) -> Act:
    """These Content-Length headers before the right bytes."""
    head = "".join(f"Content-Length: {value}\r\n" for value in values)
    return spoil(raw=f"HTTP/1.1 200 OK\r\n{head}\r\n".encode())


def less(asked: Asked, gateway: Gateway) -> Answer:
    """A part of the range, honestly."""
    return gateway.forward(asked, range=f"bytes={AT}-{AT + 4999}")


HALF = {"manifest": 100, "small": 10, "weights": AT, "archive": 300_000}
PARTS = tuple(HALF)
FRESH = ("", SECOND)

CASES = [
    # H7, H8, H14: bodies that end too early, of everything that is fetched. What came of a large one counts.
    *(
        Case(
            f"{number} {part}: {what}",
            part,
            spoil(**{"cut_after": HALF[part], **how}),
            ranges=FRESH if part == "weights" and how in ({}, {"framing": "close"}) else None,
        )
        for part in PARTS
        for number, what, how in (
            ("H7", "the connection ends before the declared length", {}),
            ("H14", "a reset in the middle of the body", {"reset": True}),
            ("H8", "no length, and an early end", {"framing": "close"}),
            ("H8", "chunks that end early", {"framing": "chunked"}),
        )
    ),
    Case("H14 every answer is cut after less than a mebibyte", "weights", spoil(cut_after=900_000), times=None),
    Case("H14 every answer is reset after less than a mebibyte", "weights", spoil(cut_after=900_000, reset=True), None),
    Case("H14 the connection ends before any answer", "weights", instead(Answer(hang_up=True)), times=3),
    Case(
        "H14 the connection ends before any answer, always",
        "weights",
        instead(Answer(hang_up=True)),
        times=None,
        ends=Unavailable,
        saying="closed the connection",
    ),
    # H14: answers that say come again, for everything that is asked for.
    *(
        Case(f"H14 {part}: {code} twice", part, status(code), times=2)
        for part in PARTS
        for code in (408, 429, 500, 502, 503, 504)
    ),
    *(
        Case(f"H14 {part}: 503 for ever", part, status(503), times=None, ends=Unavailable, saying="answered 503")
        for part in PARTS
    ),
    Case("H14 503 where a pull goes on", "weights", status(503), cut=True, ranges=("", SECOND, SECOND)),
    # H6: silence, and what is as bad.
    *(
        Case(f"H6 {part}: silence instead of an answer", part, instead(SILENT), pull=QUICK)
        for part in PARTS
        if part != "manifest"
    ),
    Case("H6 silence in the middle of the weights", "weights", spoil(stall_after=AT), pull=QUICK),
    Case("H6 silence in the middle of an archive", "archive", spoil(stall_after=300_000), pull=QUICK),
    Case(
        "H6 silence instead of a manifest",
        "manifest",
        instead(SILENT),
        times=None,
        ends=Unavailable,
        saying="didn't answer in time",
        pull=QUICK,
    ),
    Case(
        "H6 a manifest that trickles in",
        "manifest",
        spoil(drip=(1, 0.05)),
        times=None,
        ends=Unavailable,
        saying="didn't answer in time",
        pull=QUICK,
    ),
    Case(
        "H6 headers that trickle in",
        "weights",
        instead(Answer(raw=b"", body=b"HTTP/1.1 200 OK\r\n" + b"X-Padding: yes\r\n" * 50, drip=(1, 0.05))),
        pull=QUICK,
    ),
    Case("H6 weights below the slowest pace", "weights", spoil(drip=(500, 0.05)), pace=Pace(64 << 10, 0.5)),
    Case(
        "H6 weights below the slowest pace, always",
        "weights",
        spoil(drip=(1, 0.05)),
        times=None,
        ends=Unavailable,
        saying="too slow to go on",
        pace=Pace(64 << 10, 0.1),
    ),
    # H7, H9: lengths that are none.
    Case(
        "H7 bytes behind the declared length",
        "weights",
        spoil(raw=None, declared=WEIGHTS_BYTES - 5),
        ends=IntegrityError,
        saying="the manifest says",
        barred=True,
    ),
    Case(
        "H7 more bytes than declared, on a connection that is used again",
        "small",
        edit(
            lambda answer: replace(
                answer, body=answer.body + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", declared=len(answer.body)
            )
        ),
    ),
    Case(
        "H9 more bytes than the blob has, with an honest length",
        "weights",
        edit(longer),
        ends=IntegrityError,
        saying="the manifest says",
        barred=True,
    ),
    Case(
        "H9 more bytes than the blob has, without a length",
        "weights",
        edit(lambda answer: replace(longer(answer), framing="close")),
        ends=IntegrityError,
        saying="more than the",
        barred=True,
        again=1000,
    ),
    Case(
        "H9 small: more bytes than the blob has, in chunks",
        "small",
        edit(lambda answer: replace(longer(answer), framing="chunked")),
        ends=IntegrityError,
        saying="more than the",
        barred=True,
    ),
    Case("H9 a negative length", "weights", lengths("-1"), times=2),
    Case("H9 two lengths", "weights", lengths("5", "7"), times=2),
    Case("H9 a length that is no number", "weights", lengths("1e6"), times=2),
    # H10: encodings nobody asked for.
    *(
        Case(f"H10 {part}: Content-Encoding", part, edit(lambda answer: header(answer, "Content-Encoding", "gzip")))
        for part in PARTS
    ),
    Case(
        "H10 Content-Encoding, always",
        "weights",
        edit(lambda answer: header(answer, "Content-Encoding", "br")),
        times=None,
        ends=Unavailable,
        saying="sends it encoded",
    ),
    # H11: ranges that are not done, or wrongly.
    Case("H11 200 instead of 206", "weights", whole, cut=True, again=AT, ranges=FRESH),
    Case("H11 416", "go_on", status(416), cut=True, again=AT, ranges=(*FRESH, "")),
    Case("H11 206 without a range", "go_on", span(None), cut=True, again=AT, ranges=(*FRESH, "")),
    Case(
        "H11 206 with another range",
        "go_on",
        span(f"bytes 0-{WEIGHTS_BYTES - 1}/{WEIGHTS_BYTES}"),
        cut=True,
        again=AT,
        ranges=(*FRESH, ""),
    ),
    Case(
        "H11 206 with a range beyond the end",
        "go_on",
        span(f"bytes {AT}-{WEIGHTS_BYTES}/{WEIGHTS_BYTES}"),
        cut=True,
        again=AT,
        ranges=(*FRESH, ""),
    ),
    Case("H11 206 with a range that is no range", "go_on", span("bytes ½"), cut=True, again=AT, ranges=(*FRESH, "")),
    Case(
        "H11 206 of several parts",
        "go_on",
        edit(
            lambda answer: header(
                header(answer, "Content-Range", None), "Content-Type", "multipart/byteranges; boundary=x"
            )
        ),
        cut=True,
        again=AT,
        ranges=(*FRESH, ""),
    ),
    Case(
        "H11 206 that ends before its range",
        "go_on",
        spoil(cut_after=1000),
        cut=True,
        ranges=(*FRESH, f"bytes={AT + 1000}-"),
    ),
    Case("H11 206 of less than was asked for", "go_on", less, cut=True, ranges=(*FRESH, f"bytes={AT + 5000}-")),
    Case(
        "H11 206 with another total",
        "go_on",
        span(f"bytes {AT}-{WEIGHTS_BYTES - 1}/{WEIGHTS_BYTES + 1}"),
        cut=True,
        ends=IntegrityError,
        saying="the manifest says",
        barred=True,
    ),
    Case(
        "H11 a page of somebody else's instead of the rest",
        "go_on",
        status(200, body=b"<html>Please log in</html>"),
        cut=True,
        ends=IntegrityError,
        saying="the manifest says",
        barred=True,
    ),
    # H12: other bytes.
    Case("H12 manifest: a flipped bit", "manifest", edit(flipped)),
    Case(
        "H12 manifest: a flipped bit, always",
        "manifest",
        edit(flipped),
        times=None,
        ends=Unavailable,
        saying="other bytes than its digest names",
    ),
    Case(
        "H12 small: a flipped bit",
        "small",
        edit(flipped),
        ends=IntegrityError,
        saying="served wrong bytes",
        again=1000,
        barred=True,
    ),
    Case(
        "H12 weights: a flipped bit",
        "weights",
        edit(flipped),
        ends=IntegrityError,
        saying="served wrong bytes",
        again=WEIGHTS_BYTES,
        barred=True,
    ),
    Case(
        "H12 weights: the rest is of another blob",
        "go_on",
        edit(flipped),
        cut=True,
        ends=IntegrityError,
        saying="served wrong bytes",
        again=WEIGHTS_BYTES,
        barred=True,
    ),
    Case(
        "H12 archive: a flipped bit",
        "archive",
        edit(flipped),
        ends=IntegrityError,
        saying="served wrong bytes",
        again=1_000_000,
        barred=True,
    ),
    # H15: not found or no access, in the same words.
    *(
        Case(f"H15 {part}: {code}", part, status(code), ends=kind, saying="not found or no access")
        for part in PARTS
        for code, kind in ((401, Unauthenticated), (403, Unauthenticated), (404, NotFound))
    ),
    Case("H15 a policy of the registry", "weights", status(412), ends=Forbidden, saying="a policy of"),
    # H21: what is not HTTP.
    *(
        Case(f"H21 {part}: {what}", part, instead(Answer(raw=raw, framing="close")), times=2)
        for part in ("manifest", "weights")
        for what, raw in (
            ("a status line that is none", b"GARBAGE\r\n\r\n"),
            ("a status that is none", b"HTTP/1.1 abc OK\r\n\r\n"),
            ("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n"),
            ("nothing but zeros", bytes(4096)),
            ("200 headers", b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 200 + b"\r\n"),
            ("a header of 70 KiB", b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 70_000 + b"\r\n\r\n"),
            ("HTTP/2 without being asked", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        )
    ),
    Case(
        "H21 answers that only promise an answer",
        "weights",
        instead(Answer(raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, stall_after=0)),
        pull=QUICK,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault(case: Case, scene: Scene) -> None:
    scene.pull_settings, scene.pace = case.pull, case.pace
    if case.cut:
        scene.play(scene.model.weights, spoil(cut_after=AT))
    scene.play(concerned(case.concerns, scene), case.act, case.times)
    if case.ends is None:
        assert scene.pull() == scene.model.files
    else:
        with pytest.raises(case.ends, match=re.escape(case.saying)) as caught:
            scene.pull()
        assert type(caught.value) is case.ends
        assert scene.host in caught.value.message
    if case.ranges is not None:
        assert tuple(scene.ranges(scene.model.weights)) == case.ranges
    scene.gateway.calm()
    if case.barred:
        assert_barred(scene, {"small": scene.model.small, "archive": scene.model.archive}.get(case.concerns))
    assert scene.pull() == scene.model.files
    assert scene.fetched <= scene.model.size + case.again
    scene.assert_sound()


def assert_barred(scene: Scene, digest: str | None) -> None:
    """A source that served something wrong isn't asked for that blob (None: the weights) again at once."""
    digest = digest or scene.model.weights
    before = len(scene.asked(digest))
    with pytest.raises(IntegrityError, match="not asked again for"):
        scene.pull()
    assert len(scene.asked(digest)) == before
    scene.lift_bar()


def concerned(name: str, scene: Scene) -> Callable[[Asked], bool] | str:
    model = scene.model
    named: dict[str, Callable[[Asked], bool] | str] = {
        "manifest": manifest,
        "go_on": go_on,
        "small": model.small,
        "weights": model.weights,
        "archive": model.archive,
    }
    return named[name]
