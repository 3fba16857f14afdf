"""Emptying `trash/`: what lies there is named by nothing, and goes outside every lock."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Container
from pathlib import Path

log = logging.getLogger(__name__)


def delete(path: Path) -> bool:
    """Remove whatever this is; whether it is gone. What can't be removed is logged and left for the next time."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True  # another process empties the same trash
    except OSError as e:
        log.warning("cannot remove %s: %s; it is tried again at the next start", path, e.strerror)
        return False
    return True


def holds_any(path: Path, trees: Container[str]) -> bool:
    """Whether this thing in the trash is one of these trees or has one in it."""
    if path.name.partition(".")[0] in trees:
        return True
    try:
        return not path.is_symlink() and any(entry.name in trees for entry in path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def empty(directory: Path, *, sparing: Container[str] = ()) -> None:
    """Remove everything in a directory of the trash but what is named in `sparing`: a tree that is mounted after all,
    for deleting under a mount empties it at once.
    """
    for path in directory.iterdir():
        if path.name in sparing:
            log.error(
                "the mounted tree %s was swept; it stays in %s until a start after its unmount", path.name, directory
            )
        else:
            delete(path)
