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
from tests.fakes.archives import END, GNU, file, header, padded
from tests.fakes.evil_archives import HUGE, NEGATIVE, ROWS

from .archives import LIMITS, Directory


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
    layouts = {
        "packaging/layout.py",
        "sources/ocilayout.py",
        "policy/pickles.py",
    }  # write and read headers, of an image layout or as torch would read them; extract nothing
    root = Path(unpack.__file__).parents[1]
    found = []
    for path in root.rglob("*.py"):
        imported = forbidden - ({"tarfile"} if str(path.relative_to(root)) in layouts else set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = {a.name for a in node.names} if isinstance(node, ast.Import) else set()
            if isinstance(node, ast.ImportFrom):
                names = {node.module or ""}
            names &= imported
            if isinstance(node, ast.Attribute) and node.attr in {
                "unpack_archive",
                "extract",
                "extractall",
                "extractfile",
            }:
                names = forbidden
            found += [f"{path.relative_to(root)}: {name}" for name in names]
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
