"""Judging evidence in a process of its own, for one task: started, asked once, gone.

What the libraries for it import is heavy, and what they read is anybody's. The process has no rights and no network
(`system.confine`), is bounded in time and memory, and ends with this one. Its word is taken for what it is about:
whether signatures are good. Everything else it says is checked.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from modelmount.policy.signing import Statement
from modelmount.signatures.messages import Answer, Order, Task
from modelmount.system import confine, workers
from modelmount.system.workers import Helper, Worker

SECONDS: Final = 60.0
"""From the start to the answer. It takes a tenth of a second, or one where an identity is asked for."""
CPU_SECONDS: Final = 20
MEMORY_BYTES: Final = 512 << 20
ANSWER_BYTES: Final = 1 << 20
DESCRIPTORS: Final = 16
AT_ONCE: Final = 2
"""Of these processes: each may take the memory above."""

_KEYS: Final = "modelmount.signatures.worker"
_IDENTITIES: Final = "modelmount.signatures.keyless"
_ROOM: Final = threading.BoundedSemaphore(AT_ONCE)
_encode = msgspec.msgpack.Encoder().encode


class ProcessError(Exception):
    """There is no answer. The text is the rest of a sentence about the process."""


def judge(task: Task, *, seconds: float = SECONDS, module: str = "", directory: Path | None = None) -> list[Statement]:
    """One statement for each piece of the task, in their order. Blocks for at most `seconds`, and as long again where
    more processes are wanted than may run. `module` is what the process runs instead, found in `directory`.

    Raises ProcessError when the process can't be started, ends, is silent, or says what it never should. When this
    returns or raises, the process is gone.
    """
    needed = "sigstore" if task.identities else "cryptography"
    if importlib.util.find_spec(needed) is None:
        raise ProcessError(f"can't be started, because this installation lacks {needed}; install modelmount[verify]")
    if not _ROOM.acquire(timeout=seconds):
        raise ProcessError(f"couldn't be started within {seconds:g} s, because others took as long")
    module = module or (_IDENTITIES if task.identities else _KEYS)
    helper = Helper(module, directory) if directory is not None else Helper(module)
    try:
        return _ask(helper, task, time.monotonic() + seconds, seconds)
    finally:
        helper.close()
        _ROOM.release()


def _ask(helper: Helper, task: Task, deadline: float, seconds: float) -> list[Statement]:
    data = _encode(task)
    limits = confine.Limits(MEMORY_BYTES, CPU_SECONDS, 0, DESCRIPTORS)
    try:
        worker = helper.start(_encode(Order(len(data), limits)), [], seconds=deadline - time.monotonic())
    except OSError as e:
        raise ProcessError(f"can't be started ({e.strerror or e})") from e
    try:
        answer = _talk(worker, data, deadline)
    except TimeoutError:
        raise ProcessError(f"didn't answer within {seconds:g} s, and was killed") from None
    finally:
        ended = worker.end()
    if not answer:
        raise ProcessError(f"gave no answer: {ended.cause}")
    try:
        decoded = msgspec.msgpack.decode(answer, type=Answer)
    except (msgspec.DecodeError, ValueError) as e:
        raise ProcessError("said what it never should") from e
    if decoded.trouble:
        raise ProcessError(_printable(decoded.trouble))
    if [each.artifact for each in decoded.statements] != [piece.artifact for piece in task.pieces]:
        raise ProcessError("said what it never should")
    known = {each.authority for each in task.keys} | {each.authority for each in task.identities}
    if any(signer.authority not in known for each in decoded.statements for signer in each.signers):
        raise ProcessError("said what it never should")
    return decoded.statements


def _talk(worker: Worker, data: bytes, deadline: float) -> bytes:
    """Its whole answer, up to its end; empty where there is none. Raises TimeoutError, ProcessError."""
    control = worker.control
    answer = bytearray()
    try:
        for start in range(0, len(data), workers.MESSAGE_BYTES):
            control.settimeout(_left(deadline))
            control.send(data[start : start + workers.MESSAGE_BYTES])
        while True:
            control.settimeout(_left(deadline))
            received = control.recv(workers.MESSAGE_BYTES)
            if not received:
                break
            answer += received
            if len(answer) > ANSWER_BYTES:
                raise ProcessError(f"answered with more than {ANSWER_BYTES} bytes")
    except ConnectionError:
        return b""  # it ended, and how is known soon
    ended = worker.wait(_left(deadline))
    if ended is None:
        raise TimeoutError
    return bytes(answer) if ended.status == 0 else b""


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:400]
