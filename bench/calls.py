"""Calls to a driver as the kubelet makes them, by a program in Go as that is one too: Python's client alone takes a
third of a millisecond more a call, which no pod waits for.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.message import Message

from bench import programs
from bench.processes import FailedError

PROGRAM = "caller"


def make(socket: Path, calls: Iterable[tuple[str, Message]]) -> list[float]:
    """Make the calls, each a method of csi.v1.Node and its request, one after the other over one connection; the
    seconds each took. Raises FailedError when one isn't answered well, MissingError.
    """
    lines = [
        f"/csi.v1.Node/{method} {base64.b64encode(request.SerializeToString()).decode()}\n" for method, request in calls
    ]
    command = [programs.find(PROGRAM), str(socket)]
    said = subprocess.run(command, input="".join(lines), capture_output=True, text=True, check=False)
    answers = [line.split(" ", 2) for line in said.stdout.splitlines()]
    if said.returncode != 0 or len(answers) != len(lines):
        raise FailedError(f"{PROGRAM} ended with {said.returncode}: {said.stderr}")
    for _, code, message in answers:
        if code != "OK":
            raise FailedError(f"the driver answers {code}: {message}")
    return [int(microseconds) / 1e6 for microseconds, _, _ in answers]
