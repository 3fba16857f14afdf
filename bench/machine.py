"""The machine, as far as it decides a figure."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from bench import memory
from modelmount.system.mountinfo import mountinfo


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


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
