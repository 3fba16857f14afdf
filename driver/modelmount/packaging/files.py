"""Files to be packaged: what they are called, how large they are, how their bytes are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from modelmount.errors import Cancelled, InvalidRequest, Precondition
from modelmount.formats import paths
from modelmount.formats.patterns import Patterns
from modelmount.oci.digest import Digest

PIECE_BYTES: Final = 256 << 10
LEFT_OUT: Final = (".git/", ".cache/", "__pycache__/")
"""What tools leave beside a model and nobody means; `--exclude '!.cache/'` takes one back."""


class Readable(Protocol):
    """A file that is open for reading, at its beginning."""

    def read(self, count: int, /) -> bytes:
        """At most so many bytes; none at the end. Raises `modelmount.errors` alone."""


@dataclass(frozen=True, slots=True)
class File:
    """One file. `path` is where it will be in the model; `open` opens it, any number of times at once."""

    path: str
    size: int
    open: Callable[[], AbstractContextManager[Readable]]

    def pieces(self, cancelled: threading.Event) -> Iterator[bytes]:
        """Its bytes, `size` of them. Raises Precondition when there are more or fewer by now, Cancelled, and what
        opening and reading do.
        """
        left = self.size
        with self.open() as file:
            while data := file.read(PIECE_BYTES):
                if cancelled.is_set():
                    raise Cancelled("interrupted")
                left -= len(data)
                if left < 0:
                    break
                yield data
        if left:
            raise Precondition(f"{self.path} changes while it is read; try again when nobody writes to it")

    def head(self, count: int) -> bytes:
        """Its first bytes, `count` of them unless it is shorter."""
        data = bytearray()
        with self.open() as file:
            while len(data) < count and (piece := file.read(count - len(data))):
                data += piece
        return bytes(data)

    def digest(self, cancelled: threading.Event) -> Digest:
        """The digest of its bytes, all of which are read."""
        hasher = Digest.of(b"").hasher()
        for piece in self.pieces(cancelled):
            hasher.update(piece)
        return Digest("sha256", hasher.hexdigest())


class Wanted:
    """Which files of a directory are meant: patterns as in .gitignore, as for volumes."""

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        """Without `include` all are meant. Raises InvalidRequest for a pattern that can't be read."""
        try:
            self._include, self._exclude = Patterns(include), Patterns((*LEFT_OUT, *exclude))
        except ValueError as e:
            raise InvalidRequest(str(e)) from e

    def file(self, path: str) -> bool:
        """Whether the file is meant."""
        return (not self._include or self._include.matches(path)) and not self._exclude.matches(path)

    def directory(self, path: str) -> bool:
        """Whether anything in the directory may be meant."""
        return not self._exclude.matches(path, directory=True)


def checked(files: Iterable[File], where: str) -> tuple[File, ...]:
    """The files in the order of their paths, which a volume can show. Raises BadArtifact for names that none can,
    InvalidRequest when there are no files.
    """
    found = sorted(files, key=lambda file: file.path)
    if not found:
        raise InvalidRequest(f"there is nothing to push in {where}, or everything in it is excluded")
    for file in found:
        paths.check(file.path)
    paths.collisions(file.path for file in found)
    return tuple(found)
