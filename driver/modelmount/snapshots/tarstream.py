"""A strict reader of tar archives: one pass, headers only, nothing believed that two tools could read differently.

Sources: POSIX.1-2017 pax(1) "ustar Interchange Format" and "pax Interchange Format"; the GNU tar manual, "Basic Tar
Format". Regular files and directories are read, with long names of GNU (`L`) and POSIX (`x`). Everything else that an
archive can hold has been a way out of a directory, a bomb, or a difference between readers, and is refused with its
name. Layers of container images (`rootfs`) may have links, devices and names that come again; all of that stays
text here, and what it means is worked out on names alone. Mode, owner and times are not even parsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from modelmount.errors import BadArtifact
from modelmount.formats import base, paths
from modelmount.snapshots import tarfields
from modelmount.snapshots.tarfields import refuse, show

BLOCK_BYTES: Final = 512
MAX_EXTENSION_BYTES: Final = 64 << 10
"""Most that a long name or a set of extended records may have."""
MAX_ROOTFS_DEPTH: Final = 128
MAX_ROOTFS_NAMES: Final = 64 << 20
"""Characters of all names and link targets of one layer of a container image; the largest have a tenth of it."""
_ESCAPED: Final = 4
"""Characters that a byte of a name becomes where it isn't UTF-8."""
MAX_END_BYTES: Final = 1 << 20
"""Most zeros after the last entry. Writers fill up to a record: 10 KiB by default, a megabyte on large tapes."""

_ZEROS: Final = bytes(BLOCK_BYTES)
_REGULAR: Final = (b"0", b"\0")
_DIRECTORY: Final = b"5"
_EXTENSIONS: Final = (tarfields.LONG_NAME, tarfields.RECORDS, tarfields.GLOBAL_RECORDS)
_REFUSED_KINDS: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"K": "a link",
    b"S": "a sparse file",
    b"M": "the rest of a file from another volume",
}


_SPECIALS: Final = {
    b"1": base.HARDLINK,
    b"2": base.SYMLINK,
    b"3": "character device",
    b"4": "block device",
    b"6": "named pipe",
}
"""What layers of container images may hold besides files and directories."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or directory. `path` is checked (`formats.paths.check`); `size` is 0 for directories.

    In layers of container images `path` is only relative and without `..`, and `special` and `target` are as in
    `formats.base.Member`.
    """

    path: str
    is_directory: bool
    size: int
    special: str = ""
    target: str = ""


class Source:
    """Bytes by count out of pieces of any size. Holds one piece at a time."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        """`pieces` has no empty one. What it raises passes through every method here."""
        self._pieces = pieces
        self._piece = memoryview(b"")

    def some(self, limit: int) -> memoryview:
        """At least one and at most `limit` bytes, without copying; none at the end."""
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        found, self._piece = self._piece[:limit], self._piece[limit:]
        return found

    def take(self, count: int) -> Iterator[memoryview]:
        """Exactly `count` bytes, in pieces. Raises BadArtifact where the archive ends before."""
        while count:
            piece = self.some(count)
            if not piece:
                raise cut_off()
            count -= len(piece)
            yield piece

    def block(self) -> bytes | None:
        """The next block, or None where the archive ends in front of it."""
        head = self.some(BLOCK_BYTES)
        if len(head) == BLOCK_BYTES:
            return bytes(head)
        return b"".join((head, *self.take(BLOCK_BYTES - len(head)))) if head else None


class Headers:
    """Reads headers as they come, block by block. Fed everything but what lies between an entry's header and the next.

    More than `limit` headers, a name that occurs twice, or anything that isn't plain raises BadArtifact; then it is of
    no use any more.

    With `rootfs` it reads a layer of a container image (OCI image-spec, layer.md): names may be absolute and come
    again, and besides files and directories there are links, devices and named pipes. `..` in a name is refused.
    """

    def __init__(self, limit: int, *, rootfs: bool = False) -> None:
        self._limit, self._rootfs = limit, rootfs
        self._extending = (*_EXTENSIONS, tarfields.LONG_LINK) if rootfs else _EXTENSIONS
        self._count = self._names = 0
        self._seen: set[str] = set()
        self._extensions = tarfields.Extensions()
        self._kind = b""
        self._size = 0
        self._data: bytes | None = None
        self._zeros = 0
        self.ended = False
        """Whether the first zero block has come; the rest goes to `feed_end`."""

    def feed(self, block: bytes) -> Entry | None:
        """The next block. Where it completes an entry, its `size` bytes and their padding come next, and aren't fed.

        Not returned is the archive's own root (`./`), which every volume has.
        """
        if self._data is not None:
            self._data += block
            if len(self._data) >= self._size:
                self._extend(self._data[: self._size])
            return None
        if block == _ZEROS:
            self._refuse_dangling()
            self.ended = True
            return None
        tarfields.check_header(block)
        kind, size = block[156:157], tarfields.number(block[124:136], "size")
        if kind in self._extending:
            self._start_extension(kind, size)
            return None
        self._count_header()
        read = _rootfs_entry if self._rootfs else _entry
        entry = read(block, kind, size, self._extensions)
        self._extensions = tarfields.Extensions()
        if entry is not None:
            self._note(entry)
        return entry

    def feed_end(self, data: memoryview) -> None:
        """What comes after the first zero block, in pieces of any size: nothing but whole zero blocks, not too many."""
        self._zeros += len(data)
        if bytes(data).count(0) != len(data):
            refuse("something follows its end")
        if self._zeros > MAX_END_BYTES:
            refuse(f"more than {MAX_END_BYTES} zeros follow its end")

    def finish(self) -> None:
        """Nothing comes any more."""
        if self._data is not None:
            raise cut_off()
        self._refuse_dangling()
        if self._zeros % BLOCK_BYTES:
            refuse("it ends in the middle of a block")

    def _note(self, entry: Entry) -> None:
        if self._rootfs:
            self._names += len(entry.path) + len(entry.target)
            if self._names > MAX_ROOTFS_NAMES:
                refuse(f"its names take more than {MAX_ROOTFS_NAMES} characters")
            return
        if entry.path in self._seen:
            refuse(f"it has {paths.show(entry.path)} twice")
        self._seen.add(entry.path)

    def _start_extension(self, kind: bytes, size: int) -> None:
        if size > MAX_EXTENSION_BYTES:
            refuse(f"an extended header has {size} bytes, more than {MAX_EXTENSION_BYTES}")
        self._kind, self._size, self._data = kind, size, b""
        if not size:
            self._extend(b"")

    def _extend(self, data: bytes) -> None:
        self._data = None
        self._extensions.add(self._kind, data)
        if self._kind == tarfields.GLOBAL_RECORDS:
            self._count_header()

    def _count_header(self) -> None:
        self._count += 1
        if self._count > self._limit:
            refuse(f"it has more than the {self._limit} entries an admin allows (limits.archive_entries)")

    def _refuse_dangling(self) -> None:
        if self._extensions.kinds:
            refuse("it ends between an extended header and its entry")


def entries(source: Source, limit: int, *, rootfs: bool = False) -> Iterator[Entry]:
    """Every entry in the order of the archive, as `Headers` reads them.

    Before the next step the caller takes exactly `size` bytes from `source`. After the last entry the source is at its
    end.
    """
    headers = Headers(limit, rootfs=rootfs)
    while not headers.ended and (block := source.block()) is not None:
        entry = headers.feed(block)
        if entry is not None:
            yield entry
            for _ in source.take(-entry.size % BLOCK_BYTES):
                pass
    while headers.ended and (rest := source.some(MAX_END_BYTES)):
        headers.feed_end(rest)
    headers.finish()


def check_rootfs(path: str, special: str, target: str, names: int) -> None:
    """Raise BadArtifact unless an entry of a container image's layer can be read so; `names` are the characters of all
    its names so far.
    """
    links = special == base.HARDLINK and target
    if not _is_beneath(path) or (links and not _is_beneath(target)):
        refuse(f"{paths.show(path)} is no name below an image's root, or leads to none")
    if special and special not in _SPECIALS.values():
        refuse(f"{paths.show(path)} is of an unknown type")
    if target and special not in {base.HARDLINK, base.SYMLINK}:
        refuse(f"{paths.show(path)} leads somewhere and is no link")
    if len(target) > _ESCAPED * paths.MAX_PATH_BYTES or names > MAX_ROOTFS_NAMES:
        refuse("its names are too long")


def _is_beneath(name: str) -> bool:
    """Whether `_beneath` may have made this name."""
    components = name.split("/")
    plain = not any(component in {"", ".", ".."} for component in components)
    return plain and len(components) <= MAX_ROOTFS_DEPTH and len(name) <= _ESCAPED * paths.MAX_PATH_BYTES


def cut_off() -> BadArtifact:
    """For an archive that ends too early."""
    return BadArtifact("the archive is cut off; push the model again")


def _entry(header: bytes, kind: bytes, size: int, extensions: tarfields.Extensions) -> Entry | None:
    """The entry, or None for the archive's own root."""
    name = extensions.path if extensions.path is not None else tarfields.entry_name(header)
    if kind in _REFUSED_KINDS:
        refuse(f"{show(name)} is {_REFUSED_KINDS[kind]}; only files and directories are unpacked")
    if kind not in (*_REGULAR, _DIRECTORY):
        refuse(f"{show(name)} is of type {kind.decode('latin-1')!a}; only files and directories are unpacked")
    if extensions.size is not None:
        size = extensions.size
    try:
        path = name.decode()
    except UnicodeDecodeError:
        refuse(f"the name {show(name)} is not UTF-8")
    if kind != _DIRECTORY:
        return Entry(paths.check(path), False, size)
    if size:
        refuse(f"the directory {show(name)} has data")
    path = path.removesuffix("/")
    return None if path == "." else Entry(paths.check(path), True, 0)


def _rootfs_entry(header: bytes, kind: bytes, size: int, extensions: tarfields.Extensions) -> Entry | None:
    """The entry, or None for the image's own root."""
    name = extensions.path if extensions.path is not None else tarfields.entry_name(header)
    path = _beneath(name)
    if kind in _REGULAR:
        if not path or name.endswith(b"/"):
            refuse(f"the file {show(name)} is named like a directory")
        return Entry(path, False, size if extensions.size is None else extensions.size)
    if kind != _DIRECTORY and kind not in _SPECIALS:
        refuse(f"{show(name)} is {_REFUSED_KINDS.get(kind, 'of an unknown type')}, which no container image needs")
    if size or extensions.size:
        refuse(f"{show(name)} is no file and has data")
    if kind == _DIRECTORY or not path:
        return Entry(path, True, 0) if path else None
    link = extensions.link if extensions.link is not None else header[157:257].partition(b"\0")[0]
    special = _SPECIALS[kind]
    if special == base.HARDLINK:
        return Entry(path, False, 0, special, _beneath(link))
    return Entry(path, False, 0, special, _text(link) if special == base.SYMLINK else "")


def _beneath(name: bytes) -> str:
    """A name below the image's root, the only one that tools may mean by it; empty for the root itself."""
    components = [component for component in _text(name).split("/") if component not in {"", "."}]
    if ".." in components:
        refuse(f"the name {show(name)} has the component '..'")
    if len(components) > MAX_ROOTFS_DEPTH:
        refuse(f"{show(name)} is more than {MAX_ROOTFS_DEPTH} levels deep")
    return "/".join(components)


def _text(name: bytes) -> str:
    """What isn't UTF-8 becomes text that no name may have, so that it can lie in an image but never be shown."""
    if len(name) > paths.MAX_PATH_BYTES:
        refuse(f"the name {show(name)} is longer than {paths.MAX_PATH_BYTES} bytes")
    return name.decode(errors="backslashreplace")
