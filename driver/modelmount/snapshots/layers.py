"""Unpacked layers: `unpacked/<hex>/<rules>/` with `files/<number>` and `index.json`. Those of uncompressed archives
have `rest` beside them, the bytes that belong to no member (`snapshots.scatter`).

Members are stored by numbers, so no name out of an archive ever becomes a path in the store; names live in `index.json`
and act only when a tree is linked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from modelmount.content.store import Store
from modelmount.errors import Internal
from modelmount.formats.base import Encoding, Member
from modelmount.oci.digest import Digest
from modelmount.snapshots import isolated, unpack
from modelmount.system import disk


class IndexEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One member as `index.json` tells it. `type` is `file`, `directory`, or what `Member.special` says; `sha256` is
    empty for all but files.
    """

    path: str
    type: str
    size: int
    sha256: str
    target: str = ""
    number: int | None = None
    """`Member.number`, where it isn't the place in the list."""

    @classmethod
    def of(cls, ordinal: int, member: Member) -> IndexEntry:
        """The entry of one member, by its place in the list."""
        kind = member.special or ("directory" if member.is_directory else "file")
        number = member.number if member.number != ordinal else None
        return cls(member.path, kind, member.size, member.sha256, member.target, number)

    def member(self, ordinal: int) -> Member:
        """And back."""
        special = "" if self.type in {"file", "directory"} else self.type
        number = self.number if self.number is not None else ordinal
        return Member(number, self.path, self.type == "directory", self.size, self.sha256, special, self.target)


def build(
    source: isolated.Stream,
    encoding: Encoding,
    destination: Path,
    limits: unpack.Limits,
    cancelled: Callable[[], bool],
    *,
    uncompressed: Digest | None = None,
) -> None:
    """Unpack the archive `source` into the new directory `destination`, by a process of its own. Nothing is synced yet,
    and nothing may be shown to anybody before the archive's digest was checked.

    Raises like `isolated.unpack_isolated`, and leaves no `destination` then: what is unpacked in part can't be
    gone on with, and after a full disk its space is needed.
    """
    files = destination / "files"
    files.mkdir(mode=0o700, parents=True)
    try:
        fd = os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = isolated.unpack_isolated(source, encoding, fd, limits, cancelled, uncompressed=uncompressed)
        finally:
            os.close(fd)
        write_index(destination, found)
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        raise


def write_index(layer: Path, members: Sequence[Member]) -> None:
    """Make the `index.json` of a layer that is under way, from its members in archive order. Nothing is synced."""
    entries = [IndexEntry.of(ordinal, member) for ordinal, member in enumerate(members)]
    (layer / "index.json").write_bytes(msgspec.json.format(msgspec.json.encode(entries)))


def members(store: Store, digest: Digest, rules: int) -> tuple[Member, ...]:
    """What the unpacked layer holds, in archive order."""
    path = store.unpacked_path(digest, rules) / "index.json"
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[IndexEntry])
    except (OSError, msgspec.DecodeError) as e:
        raise Internal(f"cannot read {path}: {e}; run `modelmount doctor`") from e
    return tuple(entry.member(ordinal) for ordinal, entry in enumerate(entries))


def footprint(directory: Path) -> disk.Footprint:
    """What an unpacked layer takes on the disk, by its index: asking each file takes a hundred times as long. Raises
    FileNotFoundError when it is gone.
    """
    block = os.statvfs(directory).f_frsize
    own = [directory.stat(), *(path.stat() for path in directory.iterdir())]  # `rest` too, where there is one
    try:
        entries = msgspec.json.decode((directory / "index.json").read_bytes(), type=list[IndexEntry])
    except msgspec.DecodeError:
        return disk.footprint(directory)
    sizes = [entry.size for entry in entries if entry.type == "file"]
    total = sum(-(-size // block) * block for size in sizes) + sum(status.st_blocks * 512 for status in own)
    return disk.Footprint(total, len(sizes) + len(own))


def source_path(store: Store, source: str) -> Path:
    """The file behind a tree's source: `<hex>` is a blob, `<hex>/<rules>/<number>` a member of an unpacked layer."""
    return Path(source_name(store, source))


def source_name(store: Store, source: str) -> str:
    """The same as text, for who links thousands of them."""
    hex_digits, _, member = source.partition("/")
    if not member:
        algorithm = "sha512" if len(hex_digits) == 128 else "sha256"
        return store.blob_name(Digest(algorithm, hex_digits))
    rules, _, number = member.partition("/")
    return f"{store.root}/unpacked/{hex_digits}/{int(rules)}/files/{int(number)}"


def sha256_of(store: Store, source: str) -> str:
    """Of the file behind a tree's source, which is read for it. Raises OSError."""
    with source_path(store, source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def item(source: str) -> str:
    """What of the store a tree's source belongs to, named by its path below the root: it is kept or goes as a whole."""
    hex_digits, _, member = source.partition("/")
    if not member:
        return f"blobs/{'sha512' if len(hex_digits) == 128 else 'sha256'}/{hex_digits}"
    return f"unpacked/{hex_digits}/{member.partition('/')[0]}"


def clear(directory: Path) -> None:
    """Remove a half-made layer inside an ingest, so that unpacking can begin anew."""
    if os.path.lexists(directory):
        shutil.rmtree(directory)
