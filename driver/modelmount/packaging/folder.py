"""A directory of this machine, or one file."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from modelmount.errors import InvalidRequest, Precondition
from modelmount.packaging.files import File, Readable, Wanted, checked


def files(top: Path, wanted: Wanted) -> tuple[File, ...]:
    """The files below `top` that are meant, or `top` itself where it is a file.

    A link to a file is the file: that is how the Hugging Face cache keeps a model. Raises InvalidRequest for what is no
    file and for a link to a directory, which may lead anywhere; Precondition for what can't be read.
    """
    with _translated(top):
        if stat.S_ISDIR(top.stat().st_mode):
            return checked(_below(top, "", wanted), str(top))
        return checked([_file(top, top.name)], str(top))


def _below(directory: Path, prefix: str, wanted: Wanted) -> Iterator[File]:
    with os.scandir(directory) as scanned:
        entries = list(scanned)
    for entry in entries:
        name, path = prefix + entry.name, Path(entry.path)
        with _translated(path):
            if entry.is_dir(follow_symlinks=False):
                if wanted.directory(name):
                    yield from _below(path, f"{name}/", wanted)
            elif wanted.file(name):
                yield _file(path, name)


def _file(path: Path, name: str) -> File:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a link to a directory" if stat.S_ISDIR(status.st_mode) else "neither a file nor a directory"
        raise InvalidRequest(f"{path} is {kind}; leave it out with --exclude")
    return File(name, status.st_size, lambda: _opened(path))


class _Reader:
    """A file of the machine; what goes wrong is a sentence."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path, self._fd = path, fd

    def read(self, count: int, /) -> bytes:
        with _translated(self._path):
            return os.read(self._fd, count)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Readable]:
    with _translated(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield _Reader(path, fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as e:
        raise InvalidRequest(f"{e.filename or path} doesn't exist, or is a link to nowhere") from e
    except OSError as e:
        raise Precondition(f"{e.filename or path} can't be read: {e.strerror}") from e
