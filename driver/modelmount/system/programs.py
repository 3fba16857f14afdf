"""Running somebody else's program for a short answer: bounded in time and output, asked on standard input."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 64 << 10
_LOOK_SECONDS: Final = 0.01
_OURS: Final = ("MODELMOUNT_", "CSI_")
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Output:
    """How a program ended (negative: the signal), and what it wrote to standard output."""

    status: int
    text: bytes = field(repr=False)


class ProgramError(Exception):
    """It can't be started, took too long, or wrote too much. The text is the rest of a sentence, without any of what it
    wrote.
    """


def check(path: Path) -> None:
    """Raise ProgramError unless `path` is a program that nobody but its owner can change."""
    try:
        found = path.stat()
    except OSError as e:
        raise ProgramError(f"can't be started ({e.strerror})") from e
    if not stat.S_ISREG(found.st_mode) or not os.access(path, os.X_OK):
        raise ProgramError("is not a program")
    if found.st_mode & _OTHERS_MAY_WRITE:
        raise ProgramError("may be changed by others than its owner; take their right to write it")


def run(
    path: Path,
    arguments: Sequence[str],
    question: bytes,
    *,
    seconds: float,
    most_bytes: int,
    environment: Mapping[str, str] | None = None,
) -> Output:
    """Start `path`, give it `question`, and return once it has ended. Its environment is this process's without our own
    settings, and `environment`. What it writes to standard error is dropped: there may be secrets in it.

    In the end it has ended and its children were killed, however well it went. Raises ProgramError; after `seconds`, or
    with more than `most_bytes` of output, it is killed too.
    """
    check(path)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    deadline = time.monotonic() + seconds
    try:
        process = subprocess.Popen(
            [str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**inherited, **(environment or {})},
            start_new_session=True,
        )
    except OSError as e:
        raise ProgramError(f"can't be started ({e.strerror})") from e
    try:
        with process:
            try:
                text = _talk(process, question, deadline, most_bytes)
                _await_end(process, deadline)
            finally:
                _kill(process)  # nobody has waited for it, so its group can't be another's
            status = process.wait()
    except TimeoutError:
        raise ProgramError(f"didn't end within {seconds:g} s") from None
    return Output(status, text)


def _talk(process: subprocess.Popen[bytes], question: bytes, deadline: float, most_bytes: int) -> bytes:
    """Everything it writes until it closes its output."""
    text = bytearray()
    with selectors.DefaultSelector() as selector:
        if process.stdin is None or process.stdout is None:
            raise ProgramError("has no pipes")
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        left = memoryview(question)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                raise TimeoutError
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    left = left[_write(process.stdin.fileno(), left) :]
                    if not left:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                received = os.read(process.stdout.fileno(), _CHUNK_BYTES)
                text += received
                if not received:
                    selector.unregister(process.stdout)
                if len(text) > most_bytes:
                    raise ProgramError(f"wrote more than {most_bytes} bytes")
    return bytes(text)


def _await_end(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Return once it has ended, without taking note of it as wait(2) does. Raises TimeoutError."""
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() >= deadline:
            raise TimeoutError
        time.sleep(_LOOK_SECONDS)


def _write(fd: int, data: memoryview) -> int:
    """How much of it is done with: all of it where nobody reads."""
    try:
        return os.write(fd, data)
    except BrokenPipeError:
        return len(data)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
