"""Writing an OCI image layout: into a directory, where a file that has its name is complete, or into one new tar.

Source: OCI image-spec, image-layout.md. Both have the same files; the tar's headers have no times, so that the same
models are the same tar.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from modelmount.errors import IntegrityError, InvalidRequest, ModelMountError, Precondition
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import OCI_INDEX, strict_json
from modelmount.packaging.base import document
from modelmount.packaging.files import PIECE_BYTES
from modelmount.sources.ocilayout import INDEX_FILE, LAYOUT_FILE, NAME, TAG
from modelmount.system import atomic

_VERSION: Final = document({"imageLayoutVersion": "1.0.0"})
_MODE: Final = 0o644
_COMPRESSED: Final = frozenset({".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip"})


class Writer(Protocol):
    """A layout that is being written. What `close` hasn't followed is no layout yet."""

    at_once: int
    """Blobs that may be written at the same time."""

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the blob is there already, complete."""

    def blob(self, digest: Digest, size: int, pieces: Iterator[bytes]) -> None:
        """Write a blob. Raises IntegrityError, and keeps nothing of it, when its bytes aren't those of the digest."""

    def close(self, entry: Mapping[str, Any]) -> None:
        """All blobs are there: name the model in the index. An entry of the same name is replaced."""


class Folder:
    """A layout in a directory: a new one, or one to which a model is added. Thread-safe but for `close`."""

    at_once = 4

    def __init__(self, top: Path) -> None:
        """Raises InvalidRequest for a directory with something else in it, Precondition where it can't be made."""
        self._top = top
        with _translated(top):
            if top.exists() and not top.is_dir():
                raise InvalidRequest(f"{top} is no directory; name a new one, or a FILE.tar")
            if top.exists() and any(top.iterdir()) and not (top / LAYOUT_FILE).is_file():
                raise InvalidRequest(f"{top} has something else in it than an image layout; name a new directory")
            _make_directory(top)
            _make_directory(top / "blobs")

    def has(self, digest: Digest, size: int) -> bool:
        """Whether a file of this name has the bytes; all of it is read."""
        path = self._path(digest)
        try:
            return path.stat().st_size == size and _digest_of(path, digest) == digest.hex
        except FileNotFoundError:
            return False

    def blob(self, digest: Digest, size: int, pieces: Iterator[bytes]) -> None:
        """Write it beside its name, and give it its name once its bytes are right and durable."""
        path = self._path(digest)
        with _translated(self._top):
            _make_directory(path.parent)
            temporary = atomic.temporary_beside(path)
            try:
                with temporary.open("xb") as file:
                    for piece in _verified(pieces, digest, size):
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.chmod(_MODE)
                temporary.rename(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            atomic.fsync_directory(path.parent)

    def close(self, entry: Mapping[str, Any]) -> None:
        """Replace the index."""
        with _translated(self._top):
            atomic.write_file(self._top / INDEX_FILE, _index([*self._others(entry), entry]), _MODE)
            atomic.write_file(self._top / LAYOUT_FILE, _VERSION, _MODE)

    def _others(self, entry: Mapping[str, Any]) -> list[Any]:
        """What the index has besides, without what has this name; as it was written there."""
        try:
            data = (self._top / INDEX_FILE).read_bytes()
        except FileNotFoundError:
            return []
        index = strict_json(data)
        listed = index.get("manifests") if isinstance(index, dict) else None
        if not isinstance(listed, list):
            raise InvalidRequest(f"{self._top / INDEX_FILE} is damaged; name a new directory")
        return [each for each in listed if isinstance(each, dict) and _name(each) != _name(entry)]

    def _path(self, digest: Digest) -> Path:
        return self._top / "blobs" / digest.algorithm / digest.hex


class Archive:
    """A layout in a new tar, one blob after the other. It has its name once it is complete."""

    at_once = 1

    def __init__(self, path: Path) -> None:
        """Raises InvalidRequest when there is something of this name, Precondition where it can't be made."""
        self._path = path
        with _translated(path):
            if os.path.lexists(path):
                raise InvalidRequest(f"{path} exists already; name another file, or remove it")
            self._temporary = atomic.temporary_beside(path)
            self._tar = tarfile.open(self._temporary, "x", format=tarfile.PAX_FORMAT)  # noqa: SIM115
            self._add(LAYOUT_FILE, io.BytesIO(_VERSION), len(_VERSION))

    def has(self, digest: Digest, size: int) -> bool:
        """No: it is new."""
        return False

    def blob(self, digest: Digest, size: int, pieces: Iterator[bytes]) -> None:
        """Append it; wrong bytes end the whole tar."""
        with _translated(self._path):
            self._add(f"blobs/{digest.algorithm}/{digest.hex}", _Stream(_verified(pieces, digest, size)), size)

    def close(self, entry: Mapping[str, Any]) -> None:
        """Append the index, and give the tar its name."""
        data = _index([entry])
        with _translated(self._path):
            self._add(INDEX_FILE, io.BytesIO(data), len(data))
            self._tar.close()
            self._temporary.chmod(_MODE)
            atomic.fsync_file(self._temporary)
            atomic.rename_noreplace(self._temporary, self._path)
            atomic.fsync_directory(self._path.absolute().parent)

    def abandon(self) -> None:
        """It won't be completed: nothing of it is left. Harmless afterwards."""
        self._tar.close()
        self._temporary.unlink(missing_ok=True)

    def _add(self, name: str, content: Any, size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, _MODE
        self._tar.addfile(member, content)


@contextlib.contextmanager
def writer(path: Path) -> Iterator[Writer]:
    """What suits `path`: a tar where its name says so, else a directory. What isn't closed leaves no half of a tar.
    Raises InvalidRequest for a name of something that isn't written, before anything is fetched for it.
    """
    if path.suffix in _COMPRESSED and not path.is_dir():
        raise InvalidRequest(f"{path}: a layout is a directory or a tar that isn't compressed; name it FILE.tar")
    if path.suffix != ".tar":
        yield Folder(path)
        return
    archive = Archive(path)
    try:
        yield archive
    finally:
        archive.abandon()


class _Stream(io.RawIOBase):
    """Pieces as a file, for tarfile."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def read(self, count: int = -1, /) -> bytes:
        """Exactly so many bytes, fewer at the end."""
        data = bytearray(self._left)
        while (count < 0 or len(data) < count) and (piece := next(self._pieces, None)) is not None:
            data += piece
        cut = len(data) if count < 0 else count
        self._left = bytes(data[cut:])
        return bytes(data[:cut])


def _verified(pieces: Iterator[bytes], digest: Digest, size: int) -> Iterator[bytes]:
    """The pieces; raises at their end, and before the last of them is out where that can be, when they are others."""
    hasher, left = digest.hasher(), size
    for piece in pieces:
        hasher.update(piece)
        left -= len(piece)
        if left < 0 or (left == 0 and hasher.hexdigest() != digest.hex):
            break
        yield piece
    if left or hasher.hexdigest() != digest.hex:
        raise IntegrityError(f"the registry served wrong bytes for {digest}; have its copy checked or push it again")


def _make_directory(path: Path) -> None:
    """A layout is for others to read, whatever this process makes otherwise."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)


def _digest_of(path: Path, digest: Digest) -> str:
    hasher = digest.hasher()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            hasher.update(piece)
    return hasher.hexdigest()


def _index(entries: list[Any]) -> bytes:
    return document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def _name(entry: Mapping[str, Any]) -> object:
    """What an entry is known by: the whole reference, else its tag, else its digest."""
    annotations = entry.get("annotations")
    if not isinstance(annotations, Mapping):
        annotations = {}
    return annotations.get(NAME) or annotations.get(TAG) or entry.get("digest")


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except ModelMountError:
        raise
    except OSError as e:
        raise Precondition(f"{e.filename or path} can't be written: {e.strerror}") from e
