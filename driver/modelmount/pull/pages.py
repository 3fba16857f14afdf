"""The page cache after a prefetch: nobody reads soon what it brings, which would only push out what running pods read.

A pull that a pod waits for leaves its pages: they are read next. All of this is a hint to the kernel, which drops clean
pages only and starts writing dirty ones back; whatever it does, no byte changes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from modelmount.system import disk


def drop(file: Path, below: int = 0) -> None:
    """Drop the file's cached pages from its beginning to `below` (0: all). A file that is gone has none."""
    with contextlib.suppress(FileNotFoundError), _opened(file) as fd:
        disk.drop_cache(fd, 0, below)


def drop_layer(layer: Path) -> None:
    """The same for the files of an unpacked layer."""
    with contextlib.suppress(FileNotFoundError):
        for file in (layer / "files").iterdir():
            drop(file)


@contextlib.contextmanager
def dropped(file: Path) -> Iterator[None]:
    """Around what syncs a file and gives it another name: then its pages go. Not those of an equal file that has the
    name already: pods may read it.
    """
    with _opened(file) as fd:
        yield
        disk.drop_cache(fd)


@contextlib.contextmanager
def layer_dropped(layer: Path) -> Iterator[None]:
    """The same around the commit of an unpacked layer."""
    with _opened(layer / "files") as directory:
        yield
        for name in os.listdir(directory):  # none where an equal layer was there first: then this one was deleted
            with _opened(name, directory) as fd:
                disk.drop_cache(fd)


@contextlib.contextmanager
def _opened(path: Path | str, directory: int | None = None) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)
