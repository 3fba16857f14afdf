"""The journal of a download: one line a piece that was written, believed only when the bytes read back agree.

A line has offset, length, crc32 of the bytes as they were in memory, and a check of the line itself. The journal is
only ever appended to: a line about bytes that didn't survive is answered by a later line for the same offset, and no
moment exists in which the journal is gone. Newlines stand on both sides of a line, so that it survives a torn one
before it (full disk) and zeros behind it (power cut).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator

from isal import isal_zlib

from modelmount.content.ranges import Range
from modelmount.system import disk

Reader = Callable[[memoryview, int], int]
"""Fills the head of a view with the bytes at an offset; how many, 0 where there are none."""

READ_BYTES = 1 << 20
_LINE = re.compile(rb"^(([0-9]{1,20}) ([0-9]{1,20}) ([0-9a-f]{8})) ([0-9a-f]{8})$", re.MULTILINE)


def append(journal: int, offset: int, length: int, crc: int) -> None:
    """Add the line about a piece; any number of threads may. Raises OSError, and then the line doesn't count."""
    body = b"%d %d %08x" % (offset, length, crc)
    line = b"\n%s %08x\n" % (body, isal_zlib.crc32(body))
    if os.write(journal, line) < len(line):
        # Only a full disk does that. Going on from there could fall behind another thread's line.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def proved(journal: int, read_into: Reader, size: int, cancelled: Callable[[], bool]) -> list[Range] | None:
    """The ranges of the bytes below `size` that the journal proves, sorted and apart from each other; None once
    `cancelled`. Takes a read of what it proves.

    Lines may overlap and contradict each other: whatever any of them is right about is proved.
    """
    proofs: dict[Range, set[int]] = {}
    for offset, length, crc in _lines(os.pread(journal, os.fstat(journal).st_size, 0)):
        if length and offset + length <= size:
            proofs.setdefault((offset, length), set()).add(crc)
    found: list[Range] = []
    for offset, length in sorted(proofs, key=lambda piece: (piece[0], -piece[1])):
        start, end = found[-1] if found else (0, 0)
        if offset + length <= end:
            continue  # proved already
        if cancelled():
            return None
        if crc_of(read_into, offset, length) not in proofs[offset, length]:
            continue
        if found and offset <= end:
            found[-1] = (start, offset + length)
        else:
            found.append((offset, offset + length))
    return found


def crc_of(read_into: Reader, offset: int, length: int) -> int:
    """crc32 of the bytes; -1 when there are fewer, or when the disk can't read them any more: they are fetched again
    then, and a disk that is told to write a bad sector anew often can.
    """
    buffer = disk.buffer(min(length, READ_BYTES))
    crc, end = 0, offset + length
    while offset < end:
        try:
            count = read_into(buffer[: end - offset], offset)
        except OSError as e:
            if e.errno != errno.EIO:
                raise
            return -1
        if not count:
            return -1
        crc = isal_zlib.crc32(buffer[:count], crc)
        offset += count
    return crc


def _lines(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The lines whose own check holds; a torn line is no line."""
    for body, offset, length, crc, check in _LINE.findall(data):
        if check == b"%08x" % isal_zlib.crc32(body):
            yield int(offset), int(length), int(crc, 16)
