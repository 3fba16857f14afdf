"""Archives that have broken other readers, by the row of the threat model that they belong to: each is refused with the
reason, and nothing appears outside of the directory.
"""

from __future__ import annotations

import ast
import io
import tarfile
from pathlib import Path

import pytest

from modelmount.errors import BadArtifact
from modelmount.formats.base import Encoding
from modelmount.snapshots import unpack

from .archives import (
    END,
    GNU,
    LIMITS,
    Directory,
    directory,
    extended,
    file,
    header,
    long_name,
    padded,
    record,
)

NEGATIVE = b"\xff" * 12
HUGE = b"\x80" + b"\xff" * 11
LINKS_ON = header(b"a", kind=b"2", link=b"..") + file(b"a/x") + END

ROWS = [
    ("T1 parent", file(b"../x") + END, "has the component '..'"),
    ("T1 parent inside", file(b"a/../../x") + END, "has the component '..'"),
    ("T1 parent by long name", long_name(b"../" * 9 + b"x" * 99) + file(b"x") + END, "has the component '..'"),
    ("T1 parent by record", extended(record(b"path", b"a/../../x")) + file(b"x") + END, "has the component '..'"),
    ("T1 parent by prefix", header(b"x", prefix=b"..") + END, "has the component '..'"),
    ("T1 absolute", file(b"/etc/x") + END, "is absolute"),
    ("T1 backslash", file(b"..\\x") + END, "contains a backslash"),
    ("T1 parent directory", directory(b"../") + END, "has the component '..'"),
    ("T2 symbolic link and a file through it", LINKS_ON, "'a' is a symbolic link"),
    ("T2 hard link", file(b"a") + header(b"b", kind=b"1", link=b"a") + END, "'b' is a hard link"),
    ("T2 hard link with data", header(b"b", 7, kind=b"1", link=b"a") + padded(b"content") + END, "is a hard link"),
    ("T2 link with a long target", header(b"././@LongLink", 4, b"K", magic=GNU) + padded(b"abc\0") + END, "is a link"),
    ("T7 hard link to a deeper symbolic link", directory(b"d/") + LINKS_ON, "'a' is a symbolic link"),
    ("T7 end of the stream inside a member", header(b"a", 4096) + bytes(512), "is cut off"),
    ("T6 negative size", header(b"a", fields={124: NEGATIVE}) + END, "size is negative or absurdly large"),
    ("T6 negative size of a long name", header(b"a", kind=b"L", fields={124: NEGATIVE}) + END, "size is negative"),
    ("T6 other base-256", header(b"a", fields={124: b"\xc0" + bytes(11)}) + END, "size is negative"),
    ("T6 minus sign", header(b"a", fields={124: b"-0000000001\0"}) + END, "size is not an octal number"),
    (
        "T6 full-width digits",
        header(b"a", fields={124: b" " + "１".encode() + bytes(8)}) + END,
        "size is not an octal number",
    ),
    ("T6 size of 2^88", header(b"a", fields={124: HUGE}) + END, "unpacks to more than the"),
    ("T8 long name", header(b"a", 600 << 20, b"L", magic=GNU) + bytes(4096), "an extended header has 629145600 bytes"),
    ("T8 long records", header(b"a", (64 << 10) + 1, b"x") + bytes(4096), "an extended header has 65537 bytes"),
    ("T9 character device", header(b"a", kind=b"3") + END, "'a' is a character device"),
    ("T9 block device", header(b"a", kind=b"4") + END, "'a' is a block device"),
    ("T9 pipe", header(b"a", kind=b"6") + END, "'a' is a named pipe"),
    ("T9 contiguous file", header(b"a", kind=b"7") + END, "'a' is of type '7'"),
    ("T9 volume label", header(b"a", kind=b"V", magic=GNU) + END, "'a' is of type 'V'"),
    ("T9 another volume", header(b"a", kind=b"M", magic=GNU) + END, "from another volume"),
    ("T9 unknown type", header(b"a", kind=b"\xff") + END, r"'a' is of type '\\xff'"),
    ("T11 checksum", file(b"a") + header(b"b", checksum=b"000001\0 ") + END, "checksum is wrong"),
    ("T11 no checksum", file(b"a") + b"x" * 512 + END, "checksum is not an octal number"),
    ("T11 cut in a header", file(b"a") + header(b"b")[:100], "is cut off"),
    ("T11 cut in data", (file(b"a", b"x" * 2000) + END)[:1024], "is cut off"),
    ("T11 cut in padding", file(b"a")[:-1], "is cut off"),
    ("T11 cut in a long name", long_name(b"a" * 600)[:1000], "is cut off"),
    ("T11 cut behind a long name", file(b"a") + long_name(b"b"), "between an extended header and its entry"),
    ("T11 cut in the end", file(b"a") + END[:-1], "in the middle of a block"),
    ("T11 unknown kind", header(b"a", magic=b"mustard\0") + END, "unknown kind of tar"),
    ("T12 file named like a directory", file(b"a/") + END, "ends with a slash"),
    ("T12 old file named like a directory", header(b"a/", kind=b"\0") + END, "ends with a slash"),
    ("T12 directory with data", header(b"a/", 7, kind=b"5") + padded(b"content") + END, "directory 'a/' has data"),
    ("T12 directory with data by record", extended(record(b"size", b"7")) + directory(b"a") + END, "has data"),
    ("T13 GNU sparse", header(b"a", kind=b"S", magic=GNU) + END, "'a' is a sparse file"),
    ("T13 sparse records", extended(record(b"GNU.sparse.major", b"1")) + file(b"a") + END, "a sparse file"),
    ("T13 star's sparse records", extended(record(b"SCHILY.realsize", b"9")) + file(b"a") + END, "a sparse file"),
    ("T13 size of letters", extended(record(b"size", b"0x10")) + file(b"a") + END, "size is not a number"),
    ("T13 size of nothing", extended(record(b"size", b"")) + file(b"a") + END, "size is not a number"),
    ("T13 negative size", extended(record(b"size", b"-1")) + file(b"a") + END, "size is not a number"),
    ("T13 size of 5000 digits", extended(record(b"size", b"9" * 5000)) + file(b"a") + END, "size is not a number"),
    ("T13 size of 20 digits", extended(record(b"size", b"9" * 20)) + file(b"a") + END, "unpacks to more than the"),
    ("T13 size for all", extended(record(b"size", b"0"), b"g") + file(b"a") + END, "sets 'size' for all entries"),
    ("T13 path for all", extended(record(b"path", b"b"), b"g") + file(b"a") + END, "sets 'path' for all entries"),
    ("T14 file twice", file(b"a") + file(b"a") + END, "has 'a' twice"),
    ("T14 file twice, spelled differently", file(b"a") + file(b"./a") + END, "has 'a' twice"),
    ("T14 directory, link, file", directory(b"a/") + LINKS_ON, "'a' is a symbolic link"),
    ("T14 directory, then file", directory(b"a/") + file(b"a") + END, "has 'a' twice"),
    ("T14 directory twice", directory(b"a/") + directory(b"a") + END, "has 'a' twice"),
    ("T14 two names for one", long_name(b"a") + extended(record(b"path", b"b")) + file(b"c") + END, "entry twice"),
    ("T14 two long names", long_name(b"a") + long_name(b"b") + file(b"c") + END, "two extended headers"),
    ("T14 a record twice", extended(record(b"path", b"a") * 2) + file(b"c") + END, "is malformed"),
    ("T15 a second archive", file(b"a") + END + file(b"b") + END, "something follows its end"),
    ("T15 data after one zero block", file(b"a") + bytes(512) + file(b"b") + END, "something follows its end"),
    ("T15 a byte at the very end", file(b"a") + END + bytes(511) + b"x", "something follows its end"),
    ("T15 a large rest of zeros", file(b"a") + bytes((1 << 20) + 1024), "zeros follow its end"),
    ("T17 too many entries", b"".join(file(b"%d" % n, b"") for n in range(1001)) + END, "more than the 1000 entries"),
    ("T17 too many global headers", extended(b"", b"g") * 1001 + END, "more than the 1000 entries"),
    ("T17 too large", file(b"a", bytes(9 << 20)) + file(b"b", bytes(9 << 20)) + END, "more than the 16777216 bytes"),
    ("P1 empty", file(b"") + END, "is empty"),
    ("P1 double slash", file(b"a//b") + END, "has an empty component"),
    ("P1 root as a file", file(b".") + END, "has the component '.'"),
    ("P1 root of the machine", directory(b"/") + END, "is empty"),
    ("P2 NUL by record", extended(record(b"path", b"a\0b")) + file(b"x") + END, "invisible or not text"),
    ("P2 NUL by long name", long_name(b"a\0b") + file(b"x") + END, "invisible or not text"),
    ("P2 escape", file(b"a\x1b[2J") + END, "invisible or not text"),
    ("P2 right to left", file("a\u202ename".encode()) + END, "invisible or not text"),
    ("P2 not UTF-8", file(b"a\xff") + END, "is not UTF-8"),
    ("P2 surrogate", file(b"a\xed\xa0\x80") + END, "is not UTF-8"),
    ("P3 component of 256 bytes", long_name(b"a" * 256) + file(b"x") + END, "component longer than 255 bytes"),
    ("P3 2100 levels", long_name(b"a/" * 2100 + b"b") + file(b"x") + END, "longer than 1024 bytes"),
    ("P6 reserved", file(b".modelmount-x") + END, "reserved for the driver"),
    ("P8 whiteout", file(b"a/.wh.b") + END, "is a whiteout"),
    ("records without end", extended(b"20 path=a") + file(b"x") + END, "is malformed"),
    ("records of length 0", extended(b"0 path=a\n") + file(b"x") + END, "is malformed"),
    ("records without key", extended(b"5 =a\n") + file(b"x") + END, "is malformed"),
    ("records without value", extended(b"7 path\n") + file(b"x") + END, "is malformed"),
    ("records of binary", extended(b"\xff" * 100) + file(b"x") + END, "is malformed"),
]


@pytest.mark.parametrize(("data", "reason"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_breaks_other_readers_is_refused(target: Directory, data: bytes, reason: str) -> None:
    with pytest.raises(BadArtifact, match=reason):
        target.unpack(data)
    assert target.is_contained()


def test_t3_the_archive_of_cve_2025_4517_writes_nothing_outside(target: Directory) -> None:
    component = "d" * 247
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        path = ""
        for step in "abcdefghijklmnop":
            deep = tarfile.TarInfo(path + component)
            deep.type = tarfile.DIRTYPE
            archive.addfile(deep)
            link = tarfile.TarInfo(path + step)
            link.type, link.linkname = tarfile.SYMTYPE, component
            archive.addfile(link)
            path += component + "/"
        escape = tarfile.TarInfo("escape")
        escape.type, escape.linkname = tarfile.LNKTYPE, "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/../../../../victim"
        archive.addfile(escape)
    with pytest.raises(BadArtifact, match="is a symbolic link"):
        target.unpack(data.getvalue())
    assert target.is_contained()


def test_t4_t5_no_module_of_the_driver_opens_archives_by_other_means() -> None:
    forbidden = {"tarfile", "zipfile", "gzip", "zlib", "bz2", "lzma"}
    root = Path(unpack.__file__).parents[1]
    found = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {a.name for a in node.names} if isinstance(node, ast.Import) else set()
            if isinstance(node, ast.ImportFrom):
                names = {node.module or ""}
            if isinstance(node, ast.Attribute) and node.attr in {"unpack_archive", "extractall"}:
                names = forbidden
            found += [f"{path.relative_to(root)}: {name}" for name in names & forbidden]
    assert found == []


class Endless(io.RawIOBase):
    """A header and then zeros for ever; counts what was asked for."""

    def __init__(self, head: bytes) -> None:
        self.head, self.read_bytes = head, 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = len(buffer)
        piece = self.head[:count]
        self.head = self.head[count:]
        buffer[:count] = piece.ljust(count, b"\0")
        self.read_bytes += count
        return count


@pytest.mark.parametrize(
    "head",
    [
        header(b"a", 600 << 20, b"L", magic=GNU),
        header(b"a", LIMITS.bytes + 1),
        file(b"a"),
        header(b"a", fields={124: HUGE}),
    ],
    ids=["T8 long name", "T17 one large file", "T15 zeros without end", "T6 size of 2^88"],
)
def test_a_stream_without_end_is_left_early(target: Directory, head: bytes) -> None:
    stream = Endless(head)
    with pytest.raises(BadArtifact):
        target.unpack(stream, Encoding.TAR)
    assert stream.read_bytes <= 2 << 20


def test_t10_t16_modes_owners_and_times_are_not_even_read(target: Directory) -> None:
    wild = {100: b"0006755\0", 108: NEGATIVE[:8], 116: b"\x80" + b"\xff" * 7, 136: b"\xff" * 12, 265: b"root\xff"}
    members = target.unpack(header(b"a", 7, fields=wild) + padded(b"content") + END)
    status = (target.files / "0").stat()
    assert target.contents(members) == {"a": b"content"}
    assert (status.st_mode & 0o7777, status.st_uid, status.st_nlink) == (0o444, (target.files).stat().st_uid, 1)
    assert status.st_mtime > 0
