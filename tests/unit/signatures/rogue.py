"""Processes that judge nothing: they end, hang, or say what they like. The number of the task's bytes, from a manifest
of that length, has no room for words, so the first byte of the manifest names the trick.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Sequence

import msgspec

from modelmount.policy.signing import Signer, Statement
from modelmount.signatures.messages import Answer, Order, Task
from modelmount.system import workers


def prepare() -> None:
    """Nothing to set up."""


def work(order: bytes, control: socket.socket, descriptors: Sequence[int], parent: int) -> None:
    """Play the trick."""
    size = msgspec.msgpack.decode(order, type=Order).size
    data = bytearray()
    while len(data) < size:
        data += control.recv(workers.MESSAGE_BYTES)
    task = msgspec.msgpack.decode(bytes(data), type=Task)
    artifact = task.pieces[0].artifact
    match task.manifest.decode():
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "silent":
            threading.Event().wait()
        case "garbage":
            control.send(b"\xff" * 100)
        case "endless":
            while True:
                control.send(bytes(100_000))
        case "other pieces":
            _say(control, Statement(form="simple", artifact="sha256:another"))
        case "other keys":
            _say(control, Statement(form="simple", artifact=artifact, signers=(Signer("made up", "x"),)))
        case "failing":
            _say(control, Statement(form="simple", artifact=artifact))
            os._exit(3)


def _say(control: socket.socket, *statements: Statement) -> None:
    control.send(msgspec.msgpack.encode(Answer(list(statements))))
