"""Requests as the log may see them.

What is secret comes from the contract itself: every field with the option `csi_secret`. On top of that go the service
account tokens that the kubelet puts among the volume attributes when `CSIDriver.spec.tokenRequests` is used
(CVE-2024-3744 is a driver that printed them), attributes named like a credential, and what stands in a URL before `@`
or after `?`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from csi.v1 import csi_pb2

MASK = "***"
TOKENS_KEY = "serviceAccount.tokens"
_CREDENTIAL_KEY = re.compile(
    r"passw|passphrase|secret|token|credential|authorization|api-?_?key|private-?_?key", re.IGNORECASE
)
_USERINFO = re.compile(r"(^|//)(?:(?!//)\S)*@(?!\w+:[0-9a-f]+$)", re.ASCII)
"""Up to the last @ that no digest follows: a password may have slashes and an @ in it."""
_QUERY = re.compile(r"\?.*", re.DOTALL)
_MAYBE_SENSITIVE = frozenset({"csi.v1.VolumeCapability.MountVolume.mount_flags"})
"""Sensitive by the specification's prose, with no option that says so. An option's name is shown, its value isn't."""


def request(message: Message) -> dict[str, Any]:
    """The set fields of `message` as plain values, with everything secret replaced by `MASK`."""
    return {field.name: _field(field, value) for field, value in message.ListFields()}


def _field(field: FieldDescriptor, value: Any) -> Any:
    if field.GetOptions().Extensions[csi_pb2.csi_secret]:
        return MASK
    if field.full_name in _MAYBE_SENSITIVE:
        return [mount_flag(flag) for flag in value]
    if _is_map(field):
        return {str(key): _attribute(str(key), item) for key, item in _items(value)}
    if field.is_repeated:
        return [_plain(field, item) for item in value]
    return _plain(field, value)


def mount_flag(flag: str) -> str:
    """The name of a mount option; a value after `=` may be a password (mount.cifs takes one so)."""
    name, separator, _ = flag.partition("=")
    return f"{name}={MASK}" if separator else flag


def _attribute(key: str, value: Any) -> Any:
    if TOKENS_KEY in key or _CREDENTIAL_KEY.search(key):
        return MASK
    if isinstance(value, Message):
        return request(value)
    return _QUERY.sub(f"?{MASK}", _USERINFO.sub(rf"\1{MASK}@", value)) if isinstance(value, str) else value


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return request(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return value


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _items(value: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    return sorted(value.items())
