"""An OSError of the store's file system in our words, with what its reader can do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from modelmount.errors import Internal, NoSpace


def is_full(error: OSError) -> bool:
    """Whether it is for want of blocks, inodes or quota."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def disk_error(error: OSError, action: str) -> NoSpace | Internal:
    """Full disks and exhausted inodes or quotas pass; the rest needs an admin. `action` completes "cannot …"."""
    if is_full(error):
        return NoSpace(f"no space left to {action}; what was verified is kept, free space on the store's file system")
    return Internal(f"cannot {action}: {error.strerror}; look at the node's disk and file system")


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Raise `disk_error` for an OSError of the block."""
    try:
        yield
    except OSError as e:
        raise disk_error(e, action) from e
