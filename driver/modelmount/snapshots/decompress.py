"""From a blob to the bytes it holds: pieces of bounded size, whatever the compression and however large they grow.

gzip (RFC 1952) may have several members, as pigz and eStargz write it, and zeros after the last one. zstd (RFC 8878)
may have several frames, skippable ones among them; windows over 128 MiB and dictionaries are refused. Every check value
that the format has is checked. Decompression runs in a thread of its own, so that it overlaps with hashing and writing.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, cast

from isal import igzip_lib

from modelmount.errors import BadArtifact, Cancelled
from modelmount.formats.base import Encoding
from modelmount.system import disk

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES: Final = 128 << 10
"""Most that one piece holds. Larger writes are slower on machines that return free memory to their host (measured)."""
AHEAD_PIECES: Final = 8
"""How far decompression may run ahead of its reader: a megabyte."""
ZSTD_WINDOW_LOG: Final = 27
"""128 MiB: the most that `zstd` itself accepts without being told otherwise (RFC 8878, 3.1.1.1.2, leaves the limit to
the decoder).
"""
_FIRST_FEED_BYTES: Final = 1 << 10


class RawReader(Protocol):
    """The blob: an unbuffered binary file, or anything that fills a buffer like one (0 at the end)."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the head of `buffer`; how many bytes."""
        ...


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: memoryview, max_length: int) -> bytes: ...


@contextmanager
def opened(stream: RawReader, encoding: Encoding, cancelled: Callable[[], bool]) -> Iterator[Iterator[bytes]]:
    """The decompressed bytes of `stream` as an iterator of pieces, none empty; for the time of the block.

    The iterator raises BadArtifact where the compressed bytes are damaged, cut off or followed by something else, and
    Cancelled; OSError of the stream passes. When the block ends nothing reads the stream any more.
    """
    match encoding:
        case Encoding.TAR | Encoding.ROOTFS_TAR:
            yield _until(_read(stream), cancelled)
            return
        case Encoding.TAR_GZIP | Encoding.RAW_GZIP | Encoding.ROOTFS_TAR_GZIP:
            codec: _Gzip | _Zstd = _Gzip()
        case Encoding.TAR_ZSTD | Encoding.RAW_ZSTD | Encoding.ROOTFS_TAR_ZSTD:
            codec = _Zstd()
        case Encoding.RAW:
            raise ValueError("a raw blob is the file itself; there is nothing to unpack")
    # Cancelling is looked for on both sides: a bomb grows much out of little, and empty frames are much without output.
    with _ahead(_inflate(_until(_read(stream), cancelled), codec)) as pieces:
        yield _until(pieces, cancelled)


class _Gzip:
    name = "gzip"
    errors = (cast("type[Exception]", igzip_lib.IsalError),)  # its stub takes the class for an instance
    may_end_in_zeros = True

    def start(self) -> _Decompressor:
        decompressor: _Decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        return decompressor


class _Zstd:
    name = "zstd"
    errors = (zstd.ZstdError,)
    may_end_in_zeros = False

    def start(self) -> _Decompressor:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})


def _read(stream: RawReader) -> Iterator[bytes]:
    buffer = disk.buffer(PIECE_BYTES)
    while count := stream.readinto(buffer):
        yield bytes(buffer[:count])


def _until(pieces: Iterator[bytes], cancelled: Callable[[], bool]) -> Iterator[bytes]:
    for piece in pieces:
        if cancelled():
            raise Cancelled("unpacking was stopped; what was downloaded is kept")
        yield piece


def _inflate(blocks: Iterator[bytes], codec: _Gzip | _Zstd) -> Iterator[bytes]:
    """Frame after frame until the end of the blocks."""
    decompressor: _Decompressor | None = None
    frames = feed = 0
    for block in blocks:
        data = memoryview(block)
        while data:
            if decompressor is None:
                if frames and codec.may_end_in_zeros and data[0] == 0:
                    _require_zeros(data, blocks, codec.name)
                    return
                decompressor, feed = codec.start(), _FIRST_FEED_BYTES
            # What a frame leaves over comes back as a copy. Growing bites keep that in proportion to the frame, or a
            # blob of millions of empty frames would be copied thousands of times over.
            bite, data = data[:feed], data[feed:]
            feed = min(2 * feed, PIECE_BYTES)
            yield from _decompress(decompressor, bite, codec)
            if decompressor.eof:
                left = len(decompressor.unused_data) + len(data)
                data = memoryview(block)[len(block) - left :]
                decompressor, frames = None, frames + 1
    if decompressor is not None or not frames:
        raise BadArtifact(f"its {codec.name} data is cut off; push the model again")


def _decompress(decompressor: _Decompressor, data: memoryview, codec: _Gzip | _Zstd) -> Iterator[bytes]:
    """All that `data` brings, at most PIECE_BYTES at a time."""
    try:
        while True:
            piece = decompressor.decompress(data, PIECE_BYTES)
            if piece:
                yield piece
            if decompressor.eof or decompressor.needs_input or not (piece or data):
                return
            data = data[:0]
    except codec.errors as e:
        raise BadArtifact(f"its {codec.name} data is damaged or not supported ({e}); push the model again") from e


def _require_zeros(data: memoryview, blocks: Iterator[bytes], name: str) -> None:
    """Tapes and block devices pad with zeros, which gzip(1) ignores too. Anything else after the end is refused."""
    for rest in itertools.chain((bytes(data),), blocks):
        if rest.count(0) != len(rest):
            raise BadArtifact(f"something else follows its {name} data; push the model again")


class _Pipe:
    """A bounded hand-over from one thread to another, which either side may end."""

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self.error: BaseException | None = None

    def put(self, item: bytes) -> bool:
        """Wait for room and add `item`; false when nobody reads any more."""
        with self._changed:
            while len(self._items) >= AHEAD_PIECES and not self._closed:
                self._changed.wait()
            self._items.append(item)
            self._changed.notify()
            return not self._closed

    def end(self, error: BaseException | None) -> None:
        """Nothing more comes: the reader gets what is there, then the end or `error`."""
        with self._changed:
            self._ended, self.error = True, error
            self._changed.notify()

    def close(self) -> None:
        """Nobody reads any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def get(self) -> bytes | None:
        """The next item, None at the end."""
        with self._changed:
            while not self._items and not self._ended:
                self._changed.wait()
            item = self._items.popleft() if self._items else None
            self._changed.notify()
            return item


@contextmanager
def _ahead(pieces: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Iterate over `pieces` in a thread of its own for the time of the block."""
    pipe = _Pipe()

    def produce() -> None:
        try:
            for piece in pieces:
                if not pipe.put(piece):
                    return
            pipe.end(None)
        except BaseException as e:  # noqa: BLE001 - raised in the reader's thread, where somebody can catch it
            pipe.end(e)

    def consume() -> Iterator[bytes]:
        while (piece := pipe.get()) is not None:
            yield piece
        if pipe.error is not None:
            raise pipe.error

    thread = threading.Thread(target=produce, name="decompress", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        pipe.close()
        thread.join()
