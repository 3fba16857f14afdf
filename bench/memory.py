"""Memory in a known state before each run.

Virtual machines may hand free pages back to their host, and the first touch of each costs a fault there: a 2 GiB copy
then takes between one and three seconds of system time by chance. So memory is touched just before each run, and what
the server reads stays in memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_BLOCK_BYTES = 64 << 20
_PAGE_BYTES = 4096
_REPORTING = Path("/sys/module/page_reporting/parameters")
_NEVER = {"page_reporting_order": "11", "max_waiting_mib": "1048576", "min_free_ms": "60000"}
"""No block of free pages is as large as the first; where that isn't taken, the most that may wait, and the longest.
Kernels know some of these.
"""
_MAP_FAILED = ctypes.c_void_p(-1).value


def touch(count: int) -> None:
    """Write to each page of `count` bytes of anonymous memory, or of most of what is available, and give them back."""
    blocks = min(count, available_bytes() * 3 // 4) // _BLOCK_BYTES
    ones = b"\1" * (_BLOCK_BYTES // _PAGE_BYTES)
    with mmap.mmap(-1, max(1, blocks) * _BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, blocks * _BLOCK_BYTES, _BLOCK_BYTES):
            area[offset : offset + _BLOCK_BYTES : _PAGE_BYTES] = ones


def available_bytes() -> int:
    """MemAvailable of /proc/meminfo."""
    return field_bytes("MemAvailable")


def field_bytes(name: str) -> int:
    """A line of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) * 1024
    raise KeyError(name)


@contextlib.contextmanager
def kept() -> Iterator[bool]:
    """Have the kernel hand no more free pages back to the host inside the block, where it has settings for that, and
    have back what it handed over before: what was touched stays. Whether it has any.
    """
    taken = False
    with contextlib.ExitStack() as stack:
        for name, value in _NEVER.items():
            path = _REPORTING / name
            # No virtual machine, a kernel without the setting or with another range, or one that doesn't let us.
            with contextlib.suppress(OSError):
                before = path.read_text()
                path.write_text(value)
                stack.callback(path.write_text, before)
                taken = True
        if taken:
            touch(available_bytes())
        yield taken


@contextlib.contextmanager
def pinned(files: Sequence[Path]) -> Iterator[None]:
    """Keep the files' pages in memory inside the block (mlock). Raises OSError where that isn't allowed."""
    with contextlib.ExitStack() as stack:
        for path in files:
            size = path.stat().st_size
            if size:
                address = _map(path, size)
                stack.callback(_libc.munmap, ctypes.c_void_p(address), ctypes.c_size_t(size))
                if _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)) != 0:
                    raise _error(path)
        yield


def _map(path: Path, size: int) -> int:
    """A read-only shared mapping, whose pages are those of the page cache: a writable private one would lock copies."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        address = _libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    finally:
        os.close(fd)
    if address is None or address == _MAP_FAILED:
        raise _error(path)
    return int(address)


def _error(path: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"keeping {path} in memory: {os.strerror(number)}")
