"""What the CSI specification demands of request fields, before anybody asks what they mean. Everything raises
InvalidRequest.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from csi.v1 import csi_pb2
from modelmount import errors
from modelmount.service import redact, status

VOLUME_ID_BYTES = 256
"""Longest volume id. The specification promises 128 bytes; the handle of a static volume is the user's own choice."""
NAME_BYTES = 128
"""Longest name of a volume to create (CSI, "Size Limits")."""
MAP_BYTES = 4096
"""Most that keys and values of one map may take together (CSI, "Size Limits")."""
MOUNT_FLAGS = frozenset({"ro", "noexec", "nosuid", "nodev", "noatime", "nodiratime", "relatime"})
"""Mount options a volume may ask for: those that take nothing away from a read-only, untrusted tree."""

_NAME_CONTROLS = frozenset(chr(c) for c in (*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0)))
_MODES = frozenset(csi_pb2.VolumeCapability.AccessMode.Mode.values()) - {csi_pb2.VolumeCapability.AccessMode.UNKNOWN}


def required(value: str, field: str) -> str:
    """`value`, when the caller sent one."""
    if not value:
        raise errors.InvalidRequest(f"the request names no {field}")
    return value


def volume_id(value: str) -> str:
    """A volume id: 1 to 256 bytes of text without control characters. It never becomes a path, so that anything else
    may be in it.
    """
    required(value, "volume_id")
    if len(value.encode()) > VOLUME_ID_BYTES:
        raise errors.InvalidRequest(f"the volume id has {len(value.encode())} bytes; {VOLUME_ID_BYTES} are allowed")
    if any(unicodedata.category(c) == "Cc" for c in value):
        raise errors.InvalidRequest("the volume id contains control characters")
    return value


def name(value: str) -> str:
    """The name of a volume to create: any Unicode but most control characters (CSI, CreateVolumeRequest.name)."""
    required(value, "name")
    if len(value.encode()) > NAME_BYTES:
        raise errors.InvalidRequest(f"the volume's name has {len(value.encode())} bytes; {NAME_BYTES} are allowed")
    if not _NAME_CONTROLS.isdisjoint(value):
        raise errors.InvalidRequest("the volume's name contains control characters")
    return value


def bounded(values: Mapping[str, str], field: str) -> Mapping[str, str]:
    """A map that keeps to the size limit. For controllers only: the kubelet passes on whatever a pod says."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in values.items())
    if size > MAP_BYTES:
        raise errors.InvalidRequest(f"{field} takes {size} bytes; {MAP_BYTES} are allowed")
    return values


def capacity(wanted: csi_pb2.CapacityRange) -> None:
    """A range that makes sense. How big the model is nobody knows yet; a volume's capacity is "unknown"."""
    if wanted.required_bytes < 0 or wanted.limit_bytes < 0:
        raise errors.InvalidRequest("capacity_range has a negative size")
    if 0 < wanted.limit_bytes < wanted.required_bytes:
        raise status.OutOfRange(
            f"capacity_range wants at least {wanted.required_bytes} and at most {wanted.limit_bytes} bytes"
        )


def complete(capability: csi_pb2.VolumeCapability) -> None:
    """A capability that says what it has to: how to access the volume, and in which mode.

    Every known mode is fine, writing ones too: the kubelet sends SINGLE_NODE_WRITER for each inline volume. The mount
    is read-only anyway.
    """
    if capability.WhichOneof("access_type") is None:
        raise errors.InvalidRequest("the volume capability names no access_type; only mount is supported")
    if capability.access_mode.mode not in _MODES:
        raise errors.InvalidRequest("the volume capability names no access_mode that this driver knows")


def supported(capability: csi_pb2.VolumeCapability) -> tuple[str, ...]:
    """The mount options of a complete capability, each once and in order, when it asks for nothing we can't do. Types
    of file systems are ignored.
    """
    complete(capability)
    if capability.HasField("block"):
        raise errors.InvalidRequest("a model is a directory and cannot be a block device; use volumeMode: Filesystem")
    flags = tuple(dict.fromkeys(capability.mount.mount_flags))
    foreign = [redact.mount_flag(flag) for flag in flags if flag not in MOUNT_FLAGS]
    if foreign:
        raise errors.InvalidRequest(
            f"mount option {foreign[0]!r} isn't allowed; allowed are {', '.join(sorted(MOUNT_FLAGS))}"
        )
    return flags


def capabilities(values: Iterable[csi_pb2.VolumeCapability]) -> list[csi_pb2.VolumeCapability]:
    """The capabilities, at least one, each complete."""
    found = list(values)
    if not found:
        raise errors.InvalidRequest("the request names no volume_capabilities")
    for capability in found:
        complete(capability)
    return found
