"""The journal of a download: one line a piece that was written, believed only when the bytes read back agree.

A line has offset, length, crc32 of the bytes as they were in memory, and a check of the line itself. The journal is
only ever appended to: a line about bytes that didn't survive is answered by a later line for the same offset, and no
moment exists in which the journal is gone. Newlines stand on both sides of a line, so that it survives a torn one
before it (full disk) and zeros behind it (power cut).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from isal import isal_zlib

READ_BYTES = 1 << 20


def line(offset: int, length: int, crc: int) -> bytes:
    """The line about a piece."""
    body = b"%d %d %08x" % (offset, length, crc)
    return b"\n%s %08x\n" % (body, isal_zlib.crc32(body))


def proved(journal: int, data: int, size: int, cancelled: Callable[[], bool]) -> list[tuple[int, int]] | None:
    """The ranges of `data` below `size` that the journal proves, sorted and apart from each other; None once
    `cancelled`. Takes a read of what it proves.

    Where several lines speak of one offset, the newest that the bytes agree with counts.
    """
    proofs: dict[int, list[tuple[int, int]]] = {}
    for offset, length, crc in _lines(os.pread(journal, os.fstat(journal).st_size, 0)):
        if length and offset + length <= size:
            proofs.setdefault(offset, []).append((length, crc))
    found: list[tuple[int, int]] = []
    for offset in sorted(proofs):
        if found and offset < found[-1][1]:
            continue  # covered by what is proved already
        for length, crc in reversed(proofs[offset]):
            if cancelled():
                return None
            if crc_of(data, offset, length) != crc:
                continue
            if found and found[-1][1] == offset:
                found[-1] = (found[-1][0], offset + length)
            else:
                found.append((offset, offset + length))
            break
    return found


def crc_of(fd: int, offset: int, length: int) -> int:
    """crc32 of the bytes; -1 when there are fewer."""
    buffer = memoryview(bytearray(min(length, READ_BYTES)))
    crc, end = 0, offset + length
    while offset < end:
        count = os.preadv(fd, [buffer[: end - offset]], offset)
        if not count:
            return -1
        crc = isal_zlib.crc32(buffer[:count], crc)
        offset += count
    return crc


def _lines(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The lines whose own check holds, oldest first; a torn line is no line."""
    for raw in data.split(b"\n"):
        body, _, check = raw.rpartition(b" ")
        fields = body.split(b" ")
        if len(fields) == 3 and check == b"%08x" % isal_zlib.crc32(body):
            yield int(fields[0]), int(fields[1]), int(fields[2], 16)
