"""How much of a file lies in the page cache, by mincore(2)."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def resident(path: Path, first: int = 0, last: int | None = None) -> float:
    """The share of the file's pages from byte `first` to `last` that are cached, from 0 to 1."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (len(mapped) + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        found = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        try:
            if _libc.mincore(ctypes.addressof(start), len(mapped), found):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            del start
        wanted = found[first // mmap.PAGESIZE : None if last is None else last // mmap.PAGESIZE]
        return sum(page & 1 for page in wanted) / len(wanted)
