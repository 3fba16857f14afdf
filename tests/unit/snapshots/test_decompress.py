"""Compressed blobs: every form that honest tools write is read to its end, everything else is refused, and neither time
nor memory grows with what a bomb promises.
"""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import sys
import threading
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.errors import BadArtifact, Cancelled
from modelmount.formats.base import Encoding, Member
from modelmount.oci.digest import Digest
from modelmount.snapshots import decompress, unpack
from tests.fakes.archives import COMPRESS, END, file, header

from .archives import LIMITS, Directory

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLAIN = b"".join(b"%d," % n for n in range(100_000))
GZIP, ZSTD = gzip.compress(PLAIN), zstd.compress(PLAIN)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 5) + b"hello"
SINGLES = [Encoding.RAW_GZIP, Encoding.RAW_ZSTD]
FRAME = {Encoding.RAW_GZIP: GZIP, Encoding.RAW_ZSTD: ZSTD}


def gzip_member(data: bytes, flags: int, extra: bytes) -> bytes:
    """RFC 1952 with optional header fields."""
    body = zlib.compressobj(6, zlib.DEFLATED, -15)
    deflated = body.compress(data) + body.flush()
    trailer = struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08" + bytes([flags]) + bytes(6) + extra + deflated + trailer


def zstd_frame(window_log: int) -> bytes:
    """RFC 8878: a raw block of five bytes behind a header that asks for a window."""
    return struct.pack("<I", 0xFD2FB528) + bytes([0, (window_log - 10) << 3]) + b"\x29\0\0hello"


def with_dictionary() -> bytes:
    samples = [b"hello world %d" % (n % 97) * 20 for n in range(2000)]
    return zstd.compress(b"hello world 55" * 100, zstd_dict=zstd.train_dict(samples, 4096))


GOOD = [
    ("gzip", Encoding.RAW_GZIP, GZIP, PLAIN),
    ("G2 two members", Encoding.RAW_GZIP, GZIP + gzip.compress(b"more"), PLAIN + b"more"),
    ("G2 a thousand members", Encoding.RAW_GZIP, gzip.compress(b"x") * 1000, b"x" * 1000),
    ("G2 zeros at the end", Encoding.RAW_GZIP, GZIP + bytes(300_000), PLAIN),
    ("an empty member", Encoding.RAW_GZIP, gzip.compress(b""), b""),
    ("a name", Encoding.RAW_GZIP, gzip_member(PLAIN, 8, b"model.bin\0"), PLAIN),
    ("a name of a megabyte", Encoding.RAW_GZIP, gzip_member(PLAIN, 8, b"n" * (1 << 20) + b"\0"), PLAIN),
    ("extra fields", Encoding.RAW_GZIP, gzip_member(PLAIN, 4, b"\x05\0abcde"), PLAIN),
    ("zstd", Encoding.RAW_ZSTD, ZSTD, PLAIN),
    ("G3 two frames", Encoding.RAW_ZSTD, ZSTD + zstd.compress(b"more"), PLAIN + b"more"),
    ("G3 skippable frames", Encoding.RAW_ZSTD, SKIPPABLE + ZSTD + SKIPPABLE + ZSTD + SKIPPABLE, PLAIN + PLAIN),
    ("G3 nothing but a skippable frame", Encoding.RAW_ZSTD, SKIPPABLE, b""),
    ("G3 a window of 128 MiB", Encoding.RAW_ZSTD, zstd_frame(27), b"hello"),
]


@pytest.mark.parametrize(("encoding", "data", "plain"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_every_honest_form_is_read_to_its_end(target: Directory, encoding: Encoding, data: bytes, plain: bytes) -> None:
    digest = Digest.of(plain)
    assert target.unpack(data, encoding, uncompressed=digest) == [Member(0, "", False, len(plain), digest.hex)]
    assert (target.files / "0").read_bytes() == plain
    assert (target.files / "0").stat().st_mode & 0o7777 == 0o444


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at:][1:]


BAD = [
    ("G2 trailing garbage", Encoding.RAW_GZIP, GZIP + b"junkjunkjunk", "damaged or not supported"),
    ("G2 a little trailing garbage", Encoding.RAW_GZIP, GZIP + b"j", "cut off"),
    ("G2 garbage behind zeros", Encoding.RAW_GZIP, GZIP + bytes(200_000) + b"x", "something else follows"),
    ("G2 a member behind zeros", Encoding.RAW_GZIP, GZIP + bytes(8) + GZIP, "something else follows"),
    ("G2 truncated", Encoding.RAW_GZIP, GZIP[:-1], "cut off"),
    ("G2 truncated in the header", Encoding.RAW_GZIP, GZIP[:5], "cut off"),
    ("G2 second member truncated", Encoding.RAW_GZIP, GZIP + GZIP[:100], "cut off"),
    ("nothing as gzip", Encoding.RAW_GZIP, b"", "cut off"),
    ("zeros as gzip", Encoding.RAW_GZIP, bytes(100), "damaged or not supported"),
    ("wrong crc", Encoding.RAW_GZIP, flipped(GZIP, len(GZIP) - 8), "damaged or not supported"),
    ("wrong length", Encoding.RAW_GZIP, flipped(GZIP, len(GZIP) - 1), "damaged or not supported"),
    ("unknown method", Encoding.RAW_GZIP, flipped(GZIP, 2), "damaged or not supported"),
    ("zstd as gzip", Encoding.RAW_GZIP, ZSTD, "damaged or not supported"),
    ("G3 window of 256 MiB", Encoding.RAW_ZSTD, zstd_frame(28), "too much memory"),
    ("G3 window of 2 GiB", Encoding.RAW_ZSTD, zstd_frame(31), "too much memory"),
    ("G3 dictionary", Encoding.RAW_ZSTD, with_dictionary(), "Dictionary mismatch"),
    ("G3 truncated", Encoding.RAW_ZSTD, ZSTD[:-1], "cut off"),
    ("G3 skippable frame truncated", Encoding.RAW_ZSTD, ZSTD + SKIPPABLE[:-1], "cut off"),
    ("G3 skippable frame of 4 GiB", Encoding.RAW_ZSTD, struct.pack("<II", 0x184D2A5F, 0xFFFFFFFF) + b"x", "cut off"),
    ("G3 trailing garbage", Encoding.RAW_ZSTD, ZSTD + b"garbage", "damaged or not supported"),
    ("G3 zeros at the end", Encoding.RAW_ZSTD, ZSTD + bytes(100), "damaged or not supported"),
    ("nothing as zstd", Encoding.RAW_ZSTD, b"", "cut off"),
    ("gzip as zstd", Encoding.RAW_ZSTD, GZIP, "damaged or not supported"),
    ("an archive without compression", Encoding.TAR_GZIP, file(b"a") + END, "damaged or not supported"),
    ("compression without an archive", Encoding.TAR_GZIP, GZIP, "checksum is not an octal number"),
    ("an archive cut off between members", Encoding.TAR_GZIP, gzip.compress(file(b"a"))[:-1], "cut off"),
    ("M20 a compressed archive as a plain one", Encoding.TAR, gzip.compress(file(b"a")) + bytes(512), "checksum"),
]


@pytest.mark.parametrize(("encoding", "data", "reason"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_damaged_or_exotic_forms_are_refused(target: Directory, encoding: Encoding, data: bytes, reason: str) -> None:
    with pytest.raises(BadArtifact, match=reason):
        target.unpack(data, encoding)
    assert target.is_contained()


def test_g4_the_digest_of_the_decompressed_bytes_is_checked_when_it_is_stated(target: Directory) -> None:
    archive = file(b"a") + END
    with pytest.raises(BadArtifact, match=f"where its manifest says {Digest.of(b'else')}"):
        target.unpack(gzip.compress(archive), Encoding.TAR_GZIP, uncompressed=Digest.of(b"else"))


@pytest.mark.parametrize("encoding", [Encoding.TAR, Encoding.TAR_GZIP, Encoding.TAR_ZSTD])
def test_g4_it_covers_padding_and_end(target: Directory, encoding: Encoding) -> None:
    archive = file(b"a") + bytes(10240)
    assert len(target.unpack(COMPRESS[encoding](archive), encoding, uncompressed=Digest.of(archive))) == 1


class Counting(io.BytesIO):
    """A blob that counts the bytes read from it."""

    taken = 0

    def readinto(self, buffer: object) -> int:
        count = super().readinto(buffer)  # type: ignore[arg-type]
        self.taken += count
        return count


def bomb(encoding: Encoding, inner: bytes, zeros: int) -> bytes:
    """`inner` and then zeros, compressed as far as they go."""
    megabyte = bytes(1 << 20)
    if encoding in {Encoding.RAW_GZIP, Encoding.TAR_GZIP}:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        pieces = [packer.compress(inner), *(packer.compress(megabyte) for _ in range(zeros >> 20)), packer.flush()]
        return b"".join(pieces)
    compressor = zstd.ZstdCompressor()
    pieces = [compressor.compress(inner), *(compressor.compress(megabyte) for _ in range(zeros >> 20))]
    return b"".join((*pieces, compressor.flush()))


@pytest.mark.parametrize(
    ("encoding", "inner"),
    [
        (Encoding.RAW_GZIP, b""),
        (Encoding.RAW_ZSTD, b""),
        (Encoding.TAR_GZIP, header(b"a", 512 << 20)),
        (Encoding.TAR_ZSTD, header(b"a", 512 << 20)),
        (Encoding.TAR_GZIP, file(b"a")),
        (Encoding.TAR_ZSTD, file(b"a")),
    ],
    ids=["gzip", "zstd", "one large file, gzip", "one large file, zstd", "G1 zeros behind the end, gzip", "... zstd"],
)
def test_g1_a_bomb_stops_early_and_takes_no_memory(target: Directory, encoding: Encoding, inner: bytes) -> None:
    data = bomb(encoding, inner, 256 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(BadArtifact):
            target.unpack(data, encoding, unpack.Limits(bytes=4 << 20, entries=10))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    written = sum(path.stat().st_size for path in target.files.iterdir())
    assert written <= 4 << 20
    assert peak < 8 << 20


def test_memory_does_not_grow_with_the_archive(target: Directory) -> None:
    data = bomb(Encoding.TAR_GZIP, header(b"a", 64 << 20), 64 << 20)
    tracemalloc.start()
    try:
        target.unpack(data, Encoding.TAR_GZIP, unpack.Limits(bytes=64 << 20, entries=1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("encoding", "frame", "count", "copies"),
    [
        (Encoding.RAW_GZIP, gzip.compress(b""), 20_000, 1100),
        (Encoding.RAW_ZSTD, struct.pack("<II", 0x184D2A50, 0), 50_000, 1100),
        (Encoding.RAW_GZIP, gzip.compress(bytes(range(256)) * 12, 0), 300, 4 * 3100),
    ],
    ids=["empty gzip members", "empty zstd frames", "small gzip members"],
)
def test_what_follows_a_frame_is_not_copied_over_and_over(
    encoding: Encoding, frame: bytes, count: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = 0
    original = decompress._decompress

    def counting(decompressor: object, data: memoryview, codec: object) -> object:
        nonlocal fed
        fed += len(data)
        return original(decompressor, data, codec)  # type: ignore[arg-type]

    monkeypatch.setattr(decompress, "_decompress", counting)
    with decompress.opened(io.BytesIO(frame * count), encoding, lambda: False) as pieces:
        for _ in pieces:
            pass
    assert fed <= copies * count


@pytest.mark.parametrize("encoding", [*FRAME, Encoding.TAR])
def test_cancelling_stops_before_the_end(target: Directory, encoding: Encoding) -> None:
    data = file(b"a", bytes(8 << 20)) if encoding is Encoding.TAR else bomb(encoding, b"", 8 << 20)
    asked = itertools.count()
    with pytest.raises(Cancelled, match="was stopped"):
        target.unpack(data, encoding, cancelled=lambda: next(asked) > 20)
    assert (target.files / "0").stat().st_size < 8 << 20


@pytest.mark.parametrize("encoding", SINGLES)
def test_cancelling_stops_where_nothing_comes_out(encoding: Encoding) -> None:
    empty = {Encoding.RAW_GZIP: gzip.compress(b""), Encoding.RAW_ZSTD: struct.pack("<II", 0x184D2A50, 0)}[encoding]
    stream = Counting(empty * 100_000)
    with (
        pytest.raises(Cancelled),
        decompress.opened(stream, encoding, lambda: stream.taken > 200_000) as pieces,
    ):
        list(pieces)
    assert stream.taken < 600_000


@pytest.mark.parametrize("encoding", SINGLES)
def test_no_thread_and_no_reader_outlives_the_block(encoding: Encoding) -> None:
    stream = Counting(FRAME[encoding] * 50)
    with decompress.opened(stream, encoding, lambda: False) as pieces:
        next(pieces)
    taken = stream.taken
    assert not [thread for thread in threading.enumerate() if thread.name == "decompress"]
    stream.seek(0)
    assert stream.taken == taken < len(FRAME[encoding]) * 50


class Broken(io.BytesIO):
    """A blob on a disk that fails after the first piece."""

    def readinto(self, buffer: object) -> int:
        if self.tell():
            raise OSError(5, "Input/output error")
        return super().readinto(buffer)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", [Encoding.RAW_GZIP, Encoding.RAW_ZSTD, Encoding.TAR])
def test_an_error_of_the_disk_is_no_verdict_about_the_archive(target: Directory, encoding: Encoding) -> None:
    data = file(b"a", bytes(1 << 20)) if encoding is Encoding.TAR else FRAME[encoding] * 10
    with pytest.raises(OSError, match="Input/output error"):
        target.unpack(Broken(data), encoding)  # type: ignore[arg-type]


def test_a_raw_blob_is_nothing_to_unpack(target: Directory) -> None:
    with pytest.raises(ValueError, match="is the file itself"):
        target.unpack(b"", Encoding.RAW)


@given(
    parts=st.lists(st.binary(max_size=5000), min_size=1, max_size=6),
    read=st.integers(1, 3000),
    encoding=st.sampled_from(SINGLES),
)
def test_frames_come_back_whole_however_the_blob_is_read(parts: list[bytes], read: int, encoding: Encoding) -> None:
    class Short(io.BytesIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            return super().readinto(buffer[:read])

    compress = gzip.compress if encoding is Encoding.RAW_GZIP else zstd.compress
    with decompress.opened(Short(b"".join(map(compress, parts))), encoding, lambda: False) as pieces:
        found = list(pieces)
    assert b"".join(found) == b"".join(parts)
    assert all(0 < len(piece) <= decompress.PIECE_BYTES for piece in found)


def test_the_limits_of_the_tests_are_those_meant(target: Directory) -> None:
    exactly = bytes(LIMITS.bytes)
    assert target.unpack(gzip.compress(exactly, 1), Encoding.RAW_GZIP)[0].size == LIMITS.bytes
