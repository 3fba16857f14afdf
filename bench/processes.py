"""Child processes and what they cost, from the kernel's own accounts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from bench.rounds import Sample

_LAUNCHER = Path(__file__).with_name("launch.py")


class FailedError(Exception):
    """A program that is measured did not do its work; the message has the end of what it said."""


def run(argv: Sequence[str], output: Path, env: Mapping[str, str] | None = None) -> Sample:
    """Run a program, its children included in the figures, its words in `output`, `env` added to the environment.
    Raises FailedError unless it exits with 0.
    """
    account = output.with_name(output.name + ".account")
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(account), *argv]
    environment = {**os.environ, **(env or {})}
    with output.open("wb") as words:
        process = subprocess.Popen(
            launcher,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=environment,
            process_group=0,
        )
        try:
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the program itself, too
            process.wait()
            raise
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
    """User and system time of a running process so far, all its threads, and its children whether they run or have
    been waited for (man 5 proc: utime, stime, cutime, cstime).
    """
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(int(child)) for child in children)


def peak_memory(pid: int) -> int:
    """The most bytes that a running process has had in memory (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
