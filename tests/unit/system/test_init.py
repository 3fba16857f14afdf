"""A program that is the first process of a namespace behaves like any other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.driver import Driver

pytestmark = pytest.mark.mount

_BEGIN = """
import os, signal, sys, time
from modelmount.system import init
init.stand_in()
"""
_ORPHANS = """
for _ in range(20):
    if not (parent := os.fork()):
        if not os.fork():
            while os.getppid() != 1:
                time.sleep(0.01)
        os._exit(0)
    os.waitpid(parent, 0)
"""


@contextlib.contextmanager
def begin(code: str) -> Iterator[subprocess.Popen[str]]:
    """As the first process of a namespace, and wait for its end."""
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", _BEGIN + code],
        stdout=subprocess.PIPE,
        text=True,
        env=Driver(Path("/")).environment(),
    ) as unshare:
        try:
            yield unshare
            unshare.wait(60)
        finally:
            unshare.kill()


def first_of(unshare: subprocess.Popen[str]) -> int:
    """The first process of its namespace."""
    return int(Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text())


@pytest.mark.parametrize(
    ("code", "status"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137), ("assert os.getpid() == 2", 0)]
)
def test_it_ends_as_what_it_stands_in_for(code: str, status: int) -> None:
    with begin(code) as unshare:
        pass
    assert unshare.returncode == status


def test_signals_are_passed_on_and_the_second_one_ends_what_takes_only_one() -> None:
    code = """
def once(number, frame):
    signal.signal(number, signal.SIG_DFL)
    print("heard", flush=True)
signal.signal(signal.SIGTERM, once)
print("ready", flush=True)
while True:
    time.sleep(3600)
"""
    with begin(code) as unshare:
        assert unshare.stdout is not None
        assert unshare.stdout.readline() == "ready\n"
        first = first_of(unshare)
        os.kill(first, signal.SIGTERM)
        assert unshare.stdout.readline() == "heard\n"
        os.kill(first, signal.SIGTERM)
    assert unshare.returncode == 128 + signal.SIGTERM


def test_orphans_are_taken_in() -> None:
    code = f"""
{_ORPHANS}
os.write(1, b"orphaned\\n")
while len([name for name in os.listdir("/proc") if name.isdigit()]) > 2:
    time.sleep(0.01)
"""
    with begin(code) as unshare:
        assert unshare.stdout is not None
        assert unshare.stdout.readline() == "orphaned\n"
    assert unshare.returncode == 0


def test_elsewhere_it_does_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{_BEGIN}print(os.getppid())"],
        capture_output=True,
        text=True,
        env=Driver(Path("/")).environment(),
    )
    assert done.stdout == f"{os.getpid()}\n", done.stderr
