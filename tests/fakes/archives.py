"""Tar archives byte by byte, right and wrong ones. No library stands between, so that anything can be written."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Mapping

from modelmount.formats.base import Encoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 512
END = bytes(2 * BLOCK)
POSIX = b"ustar\x0000"
GNU = b"ustar  \x00"


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


COMPRESS: Mapping[Encoding, Callable[[bytes], bytes]] = {
    Encoding.TAR: lambda data: data,
    Encoding.TAR_GZIP: _gzip,
    Encoding.TAR_ZSTD: zstd.compress,
    Encoding.RAW_GZIP: _gzip,
    Encoding.RAW_ZSTD: zstd.compress,
    Encoding.ROOTFS_TAR: lambda data: data,
    Encoding.ROOTFS_TAR_GZIP: _gzip,
    Encoding.ROOTFS_TAR_ZSTD: zstd.compress,
}


def header(
    name: bytes,
    size: int = 0,
    kind: bytes = b"0",
    *,
    prefix: bytes = b"",
    magic: bytes = POSIX,
    link: bytes = b"",
    fields: Mapping[int, bytes] | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """One header. `fields` overwrites bytes at offsets before the checksum is made."""
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\0" * 2
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    for offset, data in (fields or {}).items():
        block[offset : offset + len(data)] = data
    block[148:156] = checksum or b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    """`data` filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def file(name: bytes, data: bytes = b"content") -> bytes:
    """A regular file."""
    return header(name, len(data)) + padded(data)


def directory(name: bytes) -> bytes:
    """A directory."""
    return header(name, kind=b"5")


def long_name(name: bytes) -> bytes:
    """GNU's extended header for the entry that follows."""
    data = name + b"\0"
    return header(b"././@LongLink", len(data), b"L", magic=GNU) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    """One POSIX extended record."""
    body = b" %s=%s\n" % (key, value)
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


def extended(data: bytes, kind: bytes = b"x") -> bytes:
    """A POSIX extended header for the entry that follows, or (`g`) for all."""
    return header(b"pax", len(data), kind) + padded(data)
