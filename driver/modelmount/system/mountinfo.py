"""/proc/<pid>/mountinfo as values (man 5 proc_pid_mountinfo)."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelmount.system import host

_OCTAL = re.compile(rb"\\([0-7]{3})")
_CONSISTENT_SINCE: Final = (5, 8)
_READS_AT_MOST: Final = 5


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One mount as its own namespace sees it.

    `root` is the path of the mounted directory inside its file system: it follows renames and ends in `//deleted` once
    the directory is gone. `options` belong to this mount, `super_options` to the file system. Names are file-system
    strings (`os.fsdecode`), escapes already undone.
    """

    mount_id: int
    parent_id: int
    device: tuple[int, int]
    root: str
    mount_point: str
    options: frozenset[str]
    propagation: tuple[str, ...]
    fstype: str
    source: str
    super_options: frozenset[str]


def mountinfo(pid: int | None = None) -> list[MountEntry]:
    """All mounts of a process's namespace (None: our own), in the kernel's order: of a stack on one path the last is on
    top.

    Costs milliseconds with thousands of mounts: for start and reconciliation, not for a publish.
    """
    path = Path("/proc", "self" if pid is None else str(pid), "mountinfo")
    data = path.read_bytes()
    if host.kernel_version() < _CONSISTENT_SINCE:
        # Older kernels can skip entries when a mount goes away between two reads of one page each.
        for _ in range(_READS_AT_MOST):
            again = path.read_bytes()
            if again == data:
                break
            data = again
    return parse_mountinfo(data)


def mount_of(path: Path) -> MountEntry | None:
    """The mount that shows `path`, here; None where there is no saying."""
    real = Path(os.path.realpath(path))
    above: MountEntry | None = None
    for entry in mountinfo():
        nearer = above is None or len(entry.mount_point) >= len(above.mount_point)
        if nearer and real.is_relative_to(entry.mount_point):
            above = entry
    return above


def parse_mountinfo(data: bytes) -> list[MountEntry]:
    """Parse the file's content; raises ValueError for a line that is not of the kernel's form."""
    # Not splitlines: the kernel escapes newlines in names but not carriage returns.
    return [_parse_line(line) for line in data.split(b"\n") if line]


def _parse_line(line: bytes) -> MountEntry:
    fields = line.split(b" ")
    try:
        end = fields.index(b"-", 6)
        major, _, minor = fields[2].partition(b":")
        fstype, source, super_options = fields[end + 1 : end + 4]
        return MountEntry(
            mount_id=int(fields[0]),
            parent_id=int(fields[1]),
            device=(int(major), int(minor)),
            root=_name(fields[3]),
            mount_point=_name(fields[4]),
            options=_options(fields[5]),
            propagation=tuple(_name(f) for f in fields[6:end]),
            fstype=_name(fstype),
            source=_name(source),
            super_options=_options(super_options),
        )
    except (ValueError, IndexError) as e:
        raise ValueError(f"not a line of mountinfo: {line[:200]!r}") from e


def _name(field: bytes) -> str:
    if b"\\" not in field:
        return os.fsdecode(field)
    return os.fsdecode(_OCTAL.sub(lambda m: bytes([int(m[1], 8) & 0xFF]), field))


@functools.lru_cache(maxsize=1024)  # thousands of mounts have the same few
def _options(field: bytes) -> frozenset[str]:
    return frozenset(_name(option) for option in field.split(b",") if option)
