"""The machine and the programs, as far as they decide a figure."""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import memory
from modelmount import __version__
from modelmount.system.mountinfo import mountinfo

_GO_MAGIC = b"\xff Go buildinf:"
_PROGRAMS = {
    "curl": ("curl", "--version"),
    "openssl": ("openssl", "version"),
    "skopeo": ("skopeo", "--version"),
    "containerd": ("containerd", "--version"),
    "ctr": ("ctr", "--version"),
    "docker-registry": ("docker-registry", "--version"),
}


def describe(directory: Path) -> dict[str, Any]:
    """Processor, memory, kernel, the file system that holds `directory`, and the load before anything began."""
    processor = _cpuinfo()
    flags = processor.get("flags", processor.get("Features", "")).split()
    entry = max((e for e in mountinfo() if directory.is_relative_to(e.mount_point)), key=lambda e: len(e.mount_point))
    return {
        "processor": processor.get("model name", platform.machine()),
        "cpus": len(os.sched_getaffinity(0)),
        "sha_instructions": bool({"sha_ni", "sha2"} & set(flags)),
        "virtual_machine": "hypervisor" in flags,
        "memory_bytes": memory.field_bytes("MemTotal"),
        "kernel": platform.release(),
        "file_system": entry.fstype,
        "load": os.getloadavg()[0],
    }


def programs() -> dict[str, str]:
    """Versions of everything that is measured or that measures; for Go programs also of the Go that built them."""
    found = {
        "modelmount": __version__,
        "python": platform.python_version(),
        "openssl of python": ssl.OPENSSL_VERSION,
        **{name: metadata.version(name) for name in ("urllib3", "grpcio")},
    }
    for name, command in _PROGRAMS.items():
        path = shutil.which(command[0])
        if path is None:
            found[name] = "not installed"
            continue
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        version = (said.stdout or said.stderr).partition("\n")[0].strip()
        go = go_version(Path(path))
        found[name] = f"{version} ({go})" if go else version
    return found


def go_version(program: Path) -> str:
    """The Go that built a program, empty for others; from the header that `go version` reads (debug/buildinfo)."""
    data = program.read_bytes()
    start = data.find(_GO_MAGIC)
    if start < 0 or not data[start + 15] & 2:  # before Go 1.18 the header held pointers
        return ""
    length = data[start + 32]
    return data[start + 33 : start + 33 + length].decode(errors="replace")


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
