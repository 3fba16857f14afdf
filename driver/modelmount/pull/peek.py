"""A small range of a blob, to be looked at instead of a download or before one. Nothing of it is verified."""

from __future__ import annotations

from modelmount import telemetry
from modelmount.oci.descriptor import Descriptor
from modelmount.sources.base import BlobSource


def peek(source: BlobSource, descriptor: Descriptor, offset: int, count: int) -> bytes | None:
    """What `source` sends of the `count` bytes from `offset` on; None where it does no ranges there, or sends less.
    Raises what the source does.
    """
    buffer = memoryview(bytearray(count))
    received = 0
    with source.open(descriptor, offset, offset + count) as opened:
        if opened.offset != offset:
            return None
        while received < count and (more := opened.readinto(buffer[received:])):
            received += more
    telemetry.fetched_bytes_total.inc(received)
    return bytes(buffer) if received == count else None
