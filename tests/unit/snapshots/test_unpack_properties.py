"""Two properties: whatever an honest writer writes comes back as it was, and whatever bytes come never do more than be
refused.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from modelmount.errors import BadArtifact
from modelmount.formats import paths
from modelmount.formats.base import Encoding
from tests.fakes.archives import COMPRESS, END, directory, extended, file, header, long_name, record

from .archives import Directory

ENCODINGS = list(COMPRESS)
ARCHIVES = [encoding for encoding in ENCODINGS if encoding.is_archive]
DIALECTS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def is_name(text: str) -> bool:
    try:
        return paths.check(text) == text
    except BadArtifact:
        return False


NAMES = (
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=60), min_size=1, max_size=4
    )
    .map("/".join)
    .filter(is_name)
)
TREES = st.dictionaries(NAMES, st.one_of(st.none(), st.binary(max_size=3000)), max_size=8)


def write(tree: dict[str, bytes | None], dialect: int, number: int) -> bytes:
    """The entries that the standard library makes of it, with metadata of all sizes, without their end."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=dialect) as archive:
        for name, content in tree.items():
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.mtime, info.uname = number & 0o7777, number, number, "ünï"
            if content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        end = archive.offset
    return data.getvalue()[:end]


def fits_ustar(name: str) -> bool:
    return len(name.encode()) < 90


@given(
    tree=TREES,
    dialect=st.sampled_from(DIALECTS),
    encoding=st.sampled_from(ARCHIVES),
    number=st.integers(0, 0o7777777),
    end=st.sampled_from([b"", bytes(512), END, bytes(10240)]),
)
def test_what_an_honest_writer_writes_comes_back_as_it_was(
    tree: dict[str, bytes | None], dialect: int, encoding: Encoding, number: int, end: bytes
) -> None:
    if dialect == tarfile.USTAR_FORMAT:
        tree = {name: content for name, content in tree.items() if fits_ustar(name)}
    data = write(tree, dialect, number) + end
    with tempfile.TemporaryDirectory() as name:
        target = Directory(Path(name))
        members = target.unpack(COMPRESS[encoding](data), encoding)
        assert target.contents(members) == tree
        assert [m.path for m in members] == list(tree)
        assert [m.number for m in members] == list(range(len(tree)))
        assert target.is_contained()


def survives(data: bytes, encoding: Encoding) -> None:
    """Unpacked or refused; contained in any case."""
    with tempfile.TemporaryDirectory() as name:
        target = Directory(Path(name))
        try:
            target.unpack(data, encoding)
        except BadArtifact as e:
            assert str(e)
        assert target.is_contained()


@given(data=st.binary(max_size=4096), encoding=st.sampled_from(ENCODINGS))
def test_arbitrary_bytes_are_refused_at_worst(data: bytes, encoding: Encoding) -> None:
    survives(data, encoding)


PARTS = st.sampled_from(
    [
        file(b"a"),
        file(b"./a/b"),
        directory(b"d/"),
        long_name(b"d" * 200),
        extended(record(b"path", b"p") + record(b"size", b"3")),
        extended(record(b"comment", b"c"), b"g"),
        header(b"l", kind=b"2", link=b"a"),
        header(b"s", kind=b"S"),
        END,
        bytes(512),
    ]
)
DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6)


@given(parts=st.lists(PARTS, max_size=8), damage=DAMAGE, cut=st.integers(0, 8192), encoding=st.sampled_from(ARCHIVES))
@settings(max_examples=300)
def test_damaged_archives_are_refused_at_worst(
    parts: list[bytes], damage: list[tuple[int, int]], cut: int, encoding: Encoding
) -> None:
    data = bytearray(b"".join(parts))
    for at, value in damage:
        if data:
            data[at % len(data)] = value
    survives(COMPRESS[encoding](bytes(data[: len(data) - cut] if cut < len(data) else data)), encoding)


@given(fields=st.dictionaries(st.integers(0, 499), st.binary(min_size=1, max_size=12), max_size=4))
@settings(max_examples=300)
def test_headers_with_anything_in_them_and_a_right_checksum_are_refused_at_worst(fields: dict[int, bytes]) -> None:
    survives(header(b"a", 3, fields=fields) + bytes(1024), Encoding.TAR)


@given(data=st.binary(max_size=2000), damage=DAMAGE, encoding=st.sampled_from(ENCODINGS))
@settings(max_examples=300)
def test_damaged_compression_is_refused_at_worst(
    data: bytes, damage: list[tuple[int, int]], encoding: Encoding
) -> None:
    blob = bytearray(COMPRESS[encoding](data))
    for at, value in damage:
        if blob:
            blob[at % len(blob)] = value
    survives(bytes(blob), encoding)
