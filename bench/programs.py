"""The programs that are measured: where they are, and what version."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import ssl
import subprocess
from importlib import metadata
from pathlib import Path

from modelmount import __version__

_SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
PINNED = (_SCRIPTS / "tools.list", _SCRIPTS / "peers.list")
CACHE = Path(
    os.environ.get("MODELMOUNT_TOOLS")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelmount/tools"
)
"""Where scripts/tools and scripts/peers put what they build."""
ORAS_PY = CACHE / "oras-py/bin/python"
_GO_MAGIC = b"\xff Go buildinf:"
_VERSION_ARGUMENTS = {"oras": ("version",), "crane": ("version",), "openssl": ("version",)}


class MissingError(Exception):
    """A program can't be had here; the message says why."""


def find(name: str) -> str:
    """The pinned build of a program, else the one on PATH. Raises MissingError."""
    for line in (line for each in PINNED for line in each.read_text().splitlines()):
        fields = line.split()
        if fields and fields[0] == name:
            built = CACHE / f"{name}-{fields[2]}" / name
            if built.is_file():
                return str(built)
    found = shutil.which(name)
    if found is None:
        raise MissingError(f"{name} is not installed; scripts/peers gets it where it can")
    return found


@functools.cache
def version(name: str) -> str:
    """What a program says about itself, in a word or two; for Go programs also the Go that built it, which decides how
    fast it hashes. Raises MissingError.
    """
    path = find(name)
    command = [path, *_VERSION_ARGUMENTS.get(name, ("--version",))]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    words = (said.stdout or said.stderr).partition("\n")[0].split()
    number = next((word.lstrip("v") for word in words if word.lstrip("v")[:1].isdigit()), "?")
    go = go_version(Path(path))
    return f"{number} ({go})" if go else number


def own_version() -> str:
    """Ours, with what it stands on."""
    return (
        f"{__version__} (Python {platform.python_version()}, urllib3 {metadata.version('urllib3')}, "
        f"{' '.join(ssl.OPENSSL_VERSION.split()[:2])})"
    )


def oras_py_version() -> str:
    """Of the Python client in its own environment. Raises MissingError."""
    if not ORAS_PY.exists():
        raise MissingError("oras-py is not installed; scripts/peers gets it where it can")
    script = "from importlib import metadata; print(metadata.version('oras'))"
    return subprocess.run([str(ORAS_PY), "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def go_version(program: Path) -> str:
    """The Go that built a program, empty for others; from the header that `go version` reads (debug/buildinfo)."""
    data = program.read_bytes()
    start = data.find(_GO_MAGIC)
    if start < 0 or not data[start + 15] & 2:  # before Go 1.18 the header held pointers
        return ""
    length = data[start + 32]
    return data[start + 33 : start + 33 + length].decode(errors="replace").split()[0]
