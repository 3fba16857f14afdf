"""What a process does that judges evidence: give up its rights, take the task, answer.

It is forked for this one task, and sees nothing but what it is told. `process` is the other side of the talk.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import msgspec

from modelmount.signatures import checks
from modelmount.signatures.messages import Answer, Order, Task
from modelmount.system import confine, workers

encode = msgspec.msgpack.Encoder().encode


def prepare() -> None:
    """Once, before the fork: what is set up at its first use. A process without rights can open no file for it."""
    checks.warm_up()


def work(order_bytes: bytes, control: socket.socket, descriptors: Sequence[int], parent: int) -> None:
    """As `system.workers.Work` says."""
    order = msgspec.msgpack.decode(order_bytes, type=Order)
    try:
        confine.enter(None, order.bounds, parent)
    except OSError as e:
        _send(control, Answer([], f"can't give up its rights ({e})"))
        return
    data = bytearray()
    while len(data) < order.size:
        received = control.recv(workers.MESSAGE_BYTES)
        if not received:
            return  # nobody wants to know any more
        data += received
    try:
        answer = Answer(checks.judge(msgspec.msgpack.decode(bytes(data), type=Task)))
    except checks.Unusable as e:
        answer = Answer([], f"can't begin: {e}"[:400])
    except Exception as e:  # noqa: BLE001 - whatever it is, the other side is told
        answer = Answer([], f"failed ({type(e).__name__}: {e})"[:400])
    _send(control, answer)


def _send(control: socket.socket, answer: Answer) -> None:
    """In pieces; an empty message ends it, as the end of this process does."""
    data = encode(answer)
    for start in range(0, len(data), workers.MESSAGE_BYTES):
        control.send(data[start : start + workers.MESSAGE_BYTES])
