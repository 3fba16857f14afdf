"""What honest tools write is read: every spelling of names, sizes and ends that the formats know."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest

from modelmount.formats.base import Encoding, Member
from modelmount.snapshots import tarstream, unpack
from tests.fakes.archives import COMPRESS, END, GNU, POSIX, directory, extended, file, header, long_name, padded, record

from .archives import Directory

ARCHIVES = [Encoding.TAR, Encoding.TAR_GZIP, Encoding.TAR_ZSTD]


@pytest.mark.parametrize("encoding", ARCHIVES)
def test_members_come_in_order_with_digest_and_file(target: Directory, encoding: Encoding) -> None:
    weights = hashlib.shake_128(b"weights").digest(300_001)
    data = directory(b"model/") + file(b"model/config.json", b"{}") + file(b"model/w", weights) + file(b"e", b"") + END
    members = target.unpack(COMPRESS[encoding](data), encoding)
    assert members == [
        Member(0, "model", True, 0, ""),
        Member(1, "model/config.json", False, 2, hashlib.sha256(b"{}").hexdigest()),
        Member(2, "model/w", False, 300_001, hashlib.sha256(weights).hexdigest()),
        Member(3, "e", False, 0, hashlib.sha256(b"").hexdigest()),
    ]
    assert target.names() == {"1", "2", "3"}
    assert (target.files / "2").read_bytes() == weights
    assert {path.stat().st_mode & 0o7777 for path in target.files.iterdir()} == {0o444}


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a", "d/" + "n" * 98, "d" * 120 + "/" + "e" * 90, "ünï/模型.bin"])
def test_names_of_every_format_and_length_are_read(target: Directory, dialect: int, name: str) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=dialect) as archive:
        info = tarfile.TarInfo(name)
        info.size = 7
        archive.addfile(info, io.BytesIO(b"content"))
    assert target.contents(target.unpack(data.getvalue())) == {name: b"content"}


SPELLINGS = [
    ("leading dots", file(b"./././a") + END, {"a": b"content"}),
    ("root directory", directory(b"./") + file(b"./a") + END, {"a": b"content"}),
    ("root directory without slash", directory(b".") + file(b"./a") + END, {"a": b"content"}),
    ("directory without slash", directory(b"d") + END, {"d": None}),
    ("no end blocks", file(b"a"), {"a": b"content"}),
    ("one end block", file(b"a") + bytes(512), {"a": b"content"}),
    ("a record of zeros", file(b"a") + bytes(10240), {"a": b"content"}),
    ("a tape's record of zeros", file(b"a") + bytes(1 << 20), {"a": b"content"}),
    ("nothing", b"", {}),
    ("an end only", END, {}),
    ("old type", header(b"a", 7, b"\0") + padded(b"content") + END, {"a": b"content"}),
    ("no magic", header(b"a", 7, magic=bytes(8)) + padded(b"content") + END, {"a": b"content"}),
    ("GNU magic, times where others have a prefix", header(b"a", prefix=b"00000000000", magic=GNU) + END, {"a": b""}),
    ("name of 100 bytes", file(b"n" * 100) + END, {"n" * 100: b"content"}),
    ("prefix", header(b"x", prefix=b"a/b", magic=POSIX) + END, {"a/b/x": b""}),
    ("size with spaces", header(b"a", fields={124: b"         7 \0"}) + padded(b"content") + END, {"a": b"content"}),
    (
        "size in base 256",
        header(b"a", fields={124: b"\x80" + bytes(10) + b"\7"}) + padded(b"content"),
        {"a": b"content"},
    ),
    ("size of blanks", header(b"a", fields={124: b" " * 12}) + END, {"a": b""}),
    ("checksum of six digits and a space", header(b"a", fields={124: b"0" * 11}) + END, {"a": b""}),
    ("long name", long_name(b"d" * 120) + file(b"d" * 100) + END, {"d" * 120: b"content"}),
    ("long name of a directory", long_name(b"d" * 120 + b"/") + directory(b"d") + END, {"d" * 120: None}),
    ("path by record", extended(record(b"path", b"b")) + file(b"a") + END, {"b": b"content"}),
    ("size by record", extended(record(b"size", b"7")) + header(b"a") + padded(b"content") + END, {"a": b"content"}),
    (
        "other records",
        extended(record(b"mtime", b"-1.5") + record(b"LIBARCHIVE.x", b"=\n")) + file(b"a"),
        {"a": b"content"},
    ),
    ("global comment", extended(record(b"comment", b"git"), b"g") + file(b"a") + END, {"a": b"content"}),
    ("empty records", extended(b"") + file(b"a") + END, {"a": b"content"}),
    ("case matters", file(b"A", b"1") + file(b"a", b"2") + END, {"A": b"1", "a": b"2"}),
    ("shell words", file(b"-rf $(x) ~root %2e%2e") + END, {"-rf $(x) ~root %2e%2e": b"content"}),
]


@pytest.mark.parametrize(("data", "expected"), [s[1:] for s in SPELLINGS], ids=[s[0] for s in SPELLINGS])
def test_spellings_of_the_formats_are_read(target: Directory, data: bytes, expected: dict[str, bytes | None]) -> None:
    assert target.contents(target.unpack(data)) == expected


def test_g5_an_archive_inside_is_a_file_like_any_other(target: Directory) -> None:
    inner = b"PK\x03\x04" + file(b"../x")
    assert target.contents(target.unpack(file(b"model.keras", inner) + END)) == {"model.keras": inner}


@pytest.mark.parametrize("size", [1, 511, 512, 513, 700, 131072])
def test_the_cut_of_the_pieces_changes_nothing(size: int) -> None:
    data = long_name(b"d" * 200 + b"/" + b"e" * 200) + file(b"x", b"y" * 1500) + directory(b"e") + END
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    source = tarstream.Source(pieces)
    found = [(e.path, b"".join(source.take(e.size))) for e in tarstream.entries(source, 10) if not e.is_directory]
    assert found == [("d" * 200 + "/" + "e" * 200, b"y" * 1500)]


def test_no_two_encodings_share_a_number() -> None:
    numbers = [number for encoding in COMPRESS for number in unpack.versions(encoding)]
    assert len(numbers) == len(set(numbers))
    assert all(unpack.rules(encoding) in unpack.versions(encoding) for encoding in COMPRESS)
