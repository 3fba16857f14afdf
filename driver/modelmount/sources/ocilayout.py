"""An OCI image layout as a source: a directory, or a tar of one, as `modelmount export`, skopeo, oras and docker write
it.

Source: OCI image-spec, image-layout.md. A layout comes from anywhere: its documents are compared with their digests
here, its blobs where they are kept, its links aren't followed, and what it has besides is of no interest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelmount.errors import BadArtifact, IntegrityError, InvalidRequest, NotFound, Precondition, Unavailable
from modelmount.oci import manifest as manifests
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import MAX_DOCUMENT_BYTES, Index
from modelmount.oci.reference import Repository
from modelmount.registry.client import Document
from modelmount.registry.credentials import Credential
from modelmount.sources.base import BlobSource, Opened

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
TAG: Final = "org.opencontainers.image.ref.name"
NAME: Final = "io.containerd.image.name"
"""The whole reference, where TAG has the tag alone: so docker and containerd write them."""
MAX_MEMBERS: Final = 200_000
MAX_EXTENDED_BYTES: Final = 64 << 10
"""An extended header of a tar: names and sizes, of which layouts have short ones."""

_BLOCK = 512
_DIGITS = re.compile(r"[0-9]{1,20}", re.ASCII)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


@dataclass(frozen=True, slots=True)
class _Region:
    """Where a file's bytes are: in a file of this machine, from `start` on."""

    path: Path
    start: int
    size: int


class Layout:
    """One layout, open for reading. Thread-safe; keeps no file open."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidRequest when there is no layout at `path`, BadArtifact for one that is malformed, Precondition
        when it can't be read.
        """
        self.path = path
        self._members: Mapping[str, _Region] | None = None
        with _translated(path):
            if not path.is_dir():
                self._members = _members(path)
            if self._find(LAYOUT_FILE) is None or self._find(INDEX_FILE) is None:
                raise InvalidRequest(
                    f"{path} is no OCI image layout: it has no {LAYOUT_FILE} and {INDEX_FILE} at its top"
                )
            try:
                index = manifests.parse(self._small(INDEX_FILE), manifests.OCI_INDEX)
            except BadArtifact as e:
                raise BadArtifact(f"{path}, {INDEX_FILE}: {e.message}") from e
        if not isinstance(index, Index):
            raise BadArtifact(f"{path}: {INDEX_FILE} is no index; export it again")
        self.entries = index.manifests

    def choose(self, wanted: str | None) -> Descriptor:
        """The entry with this tag, name or digest; without one the only one. Raises InvalidRequest when several are
        left, NotFound for none; both list what there is.
        """
        found = [each for each in self.entries if wanted is None or wanted in {*_names(each), str(each.digest)}]
        if len({each.digest for each in found}) == 1:
            return found[0]
        known = ", ".join(sorted(name for each in self.entries for name in _names(each) or (str(each.digest),)))
        if found:
            raise InvalidRequest(f"{self.path} has several models; name one of them behind a colon: {known}")
        raise NotFound(f"{self.path} has no {wanted}; it has {known}")

    def document(self, digest: Digest) -> bytes:
        """A manifest or config. Raises NotFound, and IntegrityError for other bytes or too many: what is wrong with a
        layout says nothing about the model, so it is no BadArtifact, which would be remembered of the model.
        """
        with _translated(self.path):
            region = self.region(digest)
            if region.size > MAX_DOCUMENT_BYTES:
                raise IntegrityError(f"{self.path}: {digest} has {region.size} bytes, which is no manifest or config")
            data = _read(region)
        hasher = digest.hasher()
        hasher.update(data)
        if hasher.hexdigest() != digest.hex:
            raise IntegrityError(f"{self.path} has other bytes for {digest} than its digest says; export it again")
        return data

    def region(self, digest: Digest) -> _Region:
        """Where a blob lies. Raises NotFound, and OSError."""
        region = self._find(f"blobs/{digest.algorithm}/{digest.hex}")
        if region is None:
            raise NotFound(f"{self.path} has no blob {digest}; export the model again, whole")
        return region

    def _small(self, name: str) -> bytes:
        region = self._find(name)
        if region is None or region.size > MAX_DOCUMENT_BYTES:
            raise BadArtifact(f"{self.path}: {name} is missing or too large; export it again")
        return _read(region)

    def _find(self, name: str) -> _Region | None:
        if self._members is not None:
            return self._members.get(name)
        path = self.path / name
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(f"{path} is a link, or no file, where a layout has files only; export it again")
        return _Region(path, 0, status.st_size)


class LayoutDocuments:
    """One entry of a layout in a registry's place: whatever tag is asked for, it is the entry. Thread-safe.

    It proves nothing about anybody's access to a registry.
    """

    def __init__(self, layout: Layout, entry: Descriptor) -> None:
        """`entry` is one of the layout's."""
        self._layout, self._entry = layout, entry

    def exists(
        self, repository: Repository, digest: Digest, credential: Credential, what: str = "", *, tag: str = ""
    ) -> None:
        """Return when the layout has this manifest. Raises as `Layout.document`."""
        self._layout.document(digest)

    def resolve(self, repository: Repository, tag: str, credential: Credential) -> Digest:
        """The entry's digest."""
        return self._entry.digest

    def manifest(self, repository: Repository, tag: str | Digest, credential: Credential, what: str = "") -> Document:
        """The entry, or a manifest by digest. Raises as `Layout.document`."""
        digest = tag if isinstance(tag, Digest) else self._entry.digest
        media_type = self._entry.media_type if digest == self._entry.digest else None
        return Document(self._layout.document(digest), media_type, digest)


class LayoutSource(BlobSource):
    """The blobs of a layout. Thread-safe."""

    def __init__(self, layout: Layout) -> None:
        """Opens nothing yet."""
        self._layout = layout
        self._name = f"oci-layout-{hashlib.sha256(os.fsencode(layout.path.absolute())).hexdigest()[:16]}"

    @property
    def name(self) -> str:
        """The layout's place, in short."""
        return self._name

    def open(self, descriptor: Descriptor, offset: int, end: int | None = None) -> Opened:
        """Open the file. Raises as every source does."""
        path, digest = self._layout.path, descriptor.digest
        try:
            region = self._layout.region(digest)
            if region.size != descriptor.size:
                raise IntegrityError(
                    f"{path} has {region.size} bytes of blob {digest}, where the manifest says {descriptor.size}; "
                    "export the model again, whole"
                )
            return _OpenedFile(region, digest, offset, descriptor.size if end is None else min(end, descriptor.size))
        except OSError as e:
            raise Unavailable(f"{path}: blob {digest} can't be read: {e.strerror}") from e


class _OpenedFile(Opened):
    def __init__(self, region: _Region, digest: Digest, offset: int, end: int) -> None:
        self._what = f"blob {digest} of {region.path}"
        self._fd = _open(region.path)
        self._offset = offset
        self._base, self._position, self._end = region.start, offset, end
        self._interrupted = False

    @property
    def offset(self) -> int:
        return self._offset

    def readinto(self, view: memoryview) -> int:
        if self._interrupted:
            raise Unavailable(f"{self._what} isn't waited for any more")
        wanted = min(len(view), self._end - self._position)
        if not wanted:
            return 0
        try:
            count = os.preadv(self._fd, [view[:wanted]], self._base + self._position)
        except OSError as e:
            raise Unavailable(f"{self._what} can't be read: {e.strerror}") from e
        if not count:
            raise Unavailable(f"{self._what} ends after {self._position} bytes")
        self._position += count
        return count

    def interrupt(self) -> None:
        self._interrupted = True

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _names(entry: Descriptor) -> tuple[str, ...]:
    return tuple(entry.annotations[key] for key in (TAG, NAME) if entry.annotations.get(key))


def _open(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise IntegrityError(f"{path} is no file; export the model again")
    return fd


def _read(region: _Region) -> bytes:
    fd = _open(region.path)
    try:
        data = bytearray()
        while len(data) < region.size and (piece := os.pread(fd, region.size - len(data), region.start + len(data))):
            data += piece
        return bytes(data)
    finally:
        os.close(fd)


def _members(path: Path) -> Mapping[str, _Region]:
    """The files of a tar by name, found from its headers alone. Raises BadArtifact."""
    found: dict[str, _Region] = {}
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidRequest(f"{path} is neither a directory nor a file")
        for name, region in _walk(path, fd):
            if found.setdefault(name, region) != region or len(found) > MAX_MEMBERS:
                raise BadArtifact(f"{path} has {name!a} twice, or too many files to be a layout")
    finally:
        os.close(fd)
    return found


def _walk(path: Path, fd: int) -> Iterator[tuple[str, _Region]]:
    size, position = os.fstat(fd).st_size, 0
    said: dict[str, str] = {}
    while (header := os.pread(fd, _BLOCK, position)).strip(b"\0"):
        for magic, kind in _COMPRESSED.items():
            if not position and header.startswith(magic):
                raise InvalidRequest(f"{path} is compressed ({kind}), and is read in place; decompress it first")
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.TarError as e:
            raise BadArtifact(f"{path} is no tar, or damaged at byte {position}") from e
        start = position + _BLOCK
        length = int(said["size"]) if _DIGITS.fullmatch(said.get("size", "")) else member.size
        if length < 0 or start + length > size:
            raise BadArtifact(f"{path} ends in the middle of a file; it was copied in part")
        position = start + -(-length // _BLOCK) * _BLOCK
        if member.type in {tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME}:
            if length > MAX_EXTENDED_BYTES:
                raise BadArtifact(f"{path} has an extended header of {length} bytes, which no layout has")
            said |= _extended(member.type, os.pread(fd, length, start))
            continue
        if member.type in {tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK}:
            continue
        name = said.get("path", member.name)
        said = {}
        if member.type in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}:
            yield name.removeprefix("./"), _Region(path, start, length)


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    """Path and size of the next member (POSIX.1-2001 pax, GNU long names)."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not _DIGITS.fullmatch(length.decode("latin-1")) or not len(length) < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        if key in {b"path", b"size"}:
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return found


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as e:
        raise InvalidRequest(f"{e.filename or path} doesn't exist") from e
    except OSError as e:
        raise Precondition(f"{e.filename or path} can't be read: {e.strerror}") from e
