"""Programs of ours in processes of their own, and small mounts, for the tests of this directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from modelmount.system import syscalls

_MNT_DETACH = 2
MS_BIND = 4096


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment, with our packages importable."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **(extra or {})}


def start(code: str, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Run `code` in a new interpreter with pipes on its standard input and output."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(env),
    )


def line(process: subprocess.Popen[str]) -> str:
    """The next line that the process writes, without its end; empty when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def stop(process: subprocess.Popen[str]) -> None:
    """Kill and reap the process and close its pipes; twice is harmless."""
    process.kill()
    process.communicate()


@contextmanager
def mounted(path: Path, fstype: str, data: str = "", *, source: str = "test") -> Iterator[Path]:
    """A file system mounted on a new directory, with everything on top of it gone at the end."""
    path.mkdir()
    syscalls.mount(source.encode(), os.fsencode(path), fstype.encode(), 0, data.encode())
    try:
        yield path
    finally:
        detach(path)


@contextmanager
def bound(source: Path, target: Path, propagation: int | None = None) -> Iterator[Path]:
    """A plain bind, with its propagation set, detached at the end."""
    syscalls.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND)
    try:
        if propagation is not None:
            syscalls.mount(None, os.fsencode(target), None, propagation)
        yield target
    finally:
        detach(target)


def detach(path: Path) -> None:
    """Take away all that is mounted on `path`."""
    while True:
        try:
            syscalls.umount2(os.fsencode(path), _MNT_DETACH)
        except OSError:
            return
