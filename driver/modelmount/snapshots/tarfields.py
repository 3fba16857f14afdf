"""The fields of a tar archive's headers: numbers, names, and what extended headers say about the entry to come.

`tarstream` puts them together, and says where the rules are from. What isn't plain raises BadArtifact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NoReturn

from modelmount.errors import BadArtifact
from modelmount.formats import paths

LONG_NAME, LONG_LINK, RECORDS, GLOBAL_RECORDS = b"L", b"K", b"x", b"g"
_MAGICS: Final = (b"ustar\0", b"ustar ", b"\0" * 6)
"""POSIX, GNU, and the time before magics."""
_SIZE_DIGITS: Final = 20
_RECORD_LENGTH_DIGITS: Final = 6
_SPARSE: Final = (b"GNU.sparse.", b"SCHILY.realsize")
_DECIDING: Final = frozenset({b"path", b"size", b"linkpath"})
"""Records that change what an entry is; nobody needs them for all entries at once."""


@dataclass(slots=True)
class Extensions:
    """What extended headers said about the entry to come."""

    kinds: set[bytes] = field(default_factory=set)
    path: bytes | None = None
    link: bytes | None = None
    size: int | None = None

    def add(self, kind: bytes, data: bytes) -> None:
        """One extended header of this `kind`, whole. Raises BadArtifact."""
        if kind == GLOBAL_RECORDS:
            for key in _records(data):
                if key in _DECIDING or key.startswith(_SPARSE):
                    refuse(f"a global header sets {show(key)} for all entries")
            return
        if kind in self.kinds:
            refuse("two extended headers of one kind precede one entry")
        self.kinds.add(kind)
        if kind == LONG_NAME:
            self._add_name(data.rstrip(b"\0"))
            return
        if kind == LONG_LINK:
            self._add_link(data.rstrip(b"\0"))
            return
        records = _records(data)
        for key in records:
            if key.startswith(_SPARSE):
                refuse("it has a sparse file; write it without --sparse")
        if b"path" in records:
            self._add_name(records[b"path"])
        if b"linkpath" in records:
            self._add_link(records[b"linkpath"])
        if b"size" in records:
            self.size = _decimal(records[b"size"])

    def _add_name(self, name: bytes) -> None:
        if self.path is not None:
            refuse("it names one entry twice, in two extended headers")
        self.path = name

    def _add_link(self, target: bytes) -> None:
        if self.link is not None:
            refuse("it names the target of one link twice, in two extended headers")
        self.link = target


def check_header(header: bytes) -> None:
    """Refuse a block that is no header, or a damaged one."""
    # The field itself counts as eight spaces (POSIX, "chksum").
    if number(header[148:156], "checksum") != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        refuse("a header's checksum is wrong")
    if header[257:263] not in _MAGICS:
        refuse("a header is of an unknown kind of tar")


def entry_name(header: bytes) -> bytes:
    """What the header itself calls its entry."""
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    # GNU keeps times and sparse maps where POSIX has the prefix.
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _records(data: bytes) -> dict[bytes, bytes]:
    """`<length> <key>=<value>\\n`, the length counting itself (POSIX, "pax Extended Header")."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        digits, space, _ = data[position : position + _RECORD_LENGTH_DIGITS].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[position : position + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != length or record[-1:] != b"\n" or not equals or not key or key in records:
            refuse("an extended header is malformed")
        records[key] = value
        position += length
    return records


def number(raw: bytes, what: str) -> int:
    """Octal digits, or GNU's base 256 for what is too large for them (a set top bit). Never negative."""
    if raw[0] & 0x80:
        if raw[0] != 0x80:
            refuse(f"a header's {what} is negative or absurdly large")
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0")
    if digits.strip(b"01234567"):
        refuse(f"a header's {what} is not an octal number")
    return int(digits, 8) if digits else 0


def _decimal(value: bytes) -> int:
    # Bounded before int(): it refuses thousands of digits with another exception.
    if not value.isdigit() or len(value) > _SIZE_DIGITS:
        refuse("an extended header's size is not a number")
    return int(value)


def show(name: bytes) -> str:
    """A name as it may stand in a message."""
    return paths.show(name.decode(errors="replace"))


def refuse(problem: str) -> NoReturn:
    """Raise BadArtifact with what to do about it."""
    raise BadArtifact(f"{problem}; pack the model again as plain files and directories")
