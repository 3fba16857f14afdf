"""What the kubelet keeps around a target, below `<root>/pods/<uid>/volumes/kubernetes.io~csi/<name>/`: `vol_data.json`
beside the directory `mount`. The record holds no attributes, only whose volume it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelmount.system.target import Location

_CSI_VOLUMES = ("volumes", "kubernetes.io~csi")
_RECORD = "vol_data.json"
_RECORD_BYTES = 64 << 10
"""More than any record has; what is larger isn't one."""


class _Record(msgspec.Struct, frozen=True, rename="camel"):
    driver_name: str
    volume_handle: str


def pod_uid(location: Location) -> str:
    """The pod that a target belongs to; empty for paths of another shape."""
    return location.parts[0] if location.parts[1:3] == _CSI_VOLUMES else ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A volume that the kubelet has on record."""

    pod_uid: str
    volume_id: str
    target: str


def wanted(roots: Iterable[Path], driver_name: str) -> Iterator[Wanted]:
    """The volumes of this driver that the kubelet has on record, mounted or not: it writes the record before it
    publishes, and removes it after it unpublished. Roots that can't be read have none.
    """
    for root in roots:
        for directory in sorted(root.glob("/".join(("*", *_CSI_VOLUMES, "*")))):
            target = str(directory / "mount")
            found = volume_id(target, driver_name)
            if found is not None:
                yield Wanted(directory.parents[2].name, found, target)


def has_record(target: str) -> bool:
    """Whether something lies where the kubelet has its record of this target, or it can't be told. While there is none
    the kubelet can't unpublish the volume (`csiPlugin.NewUnmounter` of Kubernetes); it writes one before it publishes
    and removes it only from beside a target without a mount (`removeMountDir`).
    """
    try:
        os.stat(Path(target).parent / _RECORD, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def volume_id(target: str, driver_name: str) -> str | None:
    """The id that the kubelet publishes and unpublishes this target's volume with; None when there is no record of this
    driver.
    """
    path = Path(target).parent / _RECORD
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = os.read(fd, _RECORD_BYTES)
        finally:
            os.close(fd)
        record = msgspec.json.decode(data, type=_Record)
    except (OSError, msgspec.DecodeError):
        return None  # gone, not a file, not a record
    return record.volume_handle if record.driver_name == driver_name and record.volume_handle else None
