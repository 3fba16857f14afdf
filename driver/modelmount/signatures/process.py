"""Judging evidence in a process of its own, for one task: forked, asked once, gone.

What the libraries for it import is heavy, and what they read is anybody's. What imports them is a helper, which sees
no task and stays for a while; it forks the processes. Such a one has no rights and no network (`system.confine`), is
bounded in time and memory, and ends with this one. Its word is taken for what it is about: whether signatures are
good. Everything else it says is checked.
"""

from __future__ import annotations

import contextlib
import functools
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
"""From the start to the answer. It takes some hundredths of a second, and up to one more where a helper starts."""
IDLE_SECONDS: Final = 900.0
"""How long a helper stays for the next task. It has 14 MiB of its own, or 43 where identities are asked for."""
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
    identities = bool(task.identities)
    if not _installed(identities):
        lacking = "sigstore" if identities else "cryptography"
        raise ProcessError(f"can't be started, because this installation lacks {lacking}; install modelmount[verify]")
    if not _ROOM.acquire(timeout=seconds):
        raise ProcessError(f"couldn't be started within {seconds:g} s, because others took as long")
    try:
        helper = _helper(module or _module(identities), directory)
        return _ask(helper, task, time.monotonic() + seconds, seconds)
    finally:
        _ROOM.release()


def prepare(*, identities: bool) -> None:
    """Begin to start what the process for such a task is forked from, and don't wait for it: one is to be judged soon.
    Where that fails, whoever judges is told.
    """
    if _installed(identities):
        with contextlib.suppress(OSError):
            _helper(_module(identities), None).prepare()


def _installed(identities: bool) -> bool:
    return importlib.util.find_spec("sigstore" if identities else "cryptography") is not None


def _module(identities: bool) -> str:
    return _IDENTITIES if identities else _KEYS


@functools.cache
def _helper(module: str, directory: Path | None) -> Helper:
    """Of the whole process. It sees no task: what it starts is told it, and by us."""
    where = () if directory is None else (directory,)
    return Helper(module, *where, idle_seconds=IDLE_SECONDS)


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
