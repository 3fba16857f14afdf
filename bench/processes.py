"""Child processes and what they cost, from the kernel's own accounts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from bench.rounds import Sample

_LAUNCHER = Path(__file__).with_name("launch.py")


class FailedError(Exception):
    """A program that is measured did not do its work; the message has the end of what it said."""


def run(argv: Sequence[str], output: Path) -> Sample:
    """Run a program, its children included in the figures, its words in `output`. Raises FailedError unless it exits
    with 0.
    """
    account = output.with_name(output.name + ".account")
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(account), *argv]
    with output.open("wb") as words:
        status = subprocess.run(launcher, stdin=subprocess.DEVNULL, stdout=words, stderr=words, check=False).returncode
    if status != 0:
        raise FailedError(f"{argv[0]} exited with {status}:\n{output.read_text(errors='replace')[-2000:]}")
    figures = json.loads(account.read_bytes())
    account.unlink()
    return Sample(figures["wall"], cpu=figures["cpu"], rss=figures["rss"])


def start(argv: Sequence[str], words: IO[bytes]) -> subprocess.Popen[bytes]:
    """A daemon in the background; end it with `stop`."""
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=words, stderr=words)


def stop(process: subprocess.Popen[bytes], patience_seconds: float = 30.0) -> None:
    """SIGTERM, and SIGKILL for one that doesn't listen."""
    process.terminate()
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time of a running process, all its threads, so far (man 5 proc: utime and stime)."""
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
