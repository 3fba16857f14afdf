"""What every source of blobs keeps to. A source's tests subclass the suite and give it a `make`."""

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from modelmount.errors import IntegrityError, NotFound, Unavailable
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.sources.base import BlobSource, Opened

DATA = bytes(range(256)) * 4096
MEDIA_TYPE = "application/octet-stream"

MakeSource = Callable[[bytes], BlobSource]
"""Puts bytes where the source has them from, and gives the source."""


def descriptor(data: bytes) -> Descriptor:
    return Descriptor(MEDIA_TYPE, Digest.of(data), len(data))


def received(opened: Opened, view_bytes: int = 1 << 17) -> bytes:
    """All bytes to the end, counted from where the source says that they begin."""
    view, data = memoryview(bytearray(view_bytes)), bytearray()
    with opened:
        while count := opened.readinto(view):
            data += view[:count]
    return bytes(data)


class BlobSourceConformance:
    """Needs a fixture `make` of type MakeSource."""

    def test_a_blob_comes_whole(self, make: MakeSource) -> None:
        with make(DATA).open(descriptor(DATA), 0) as opened:
            assert opened.offset == 0
            assert received(opened) == DATA

    @pytest.mark.parametrize("view_bytes", [1, 7, 1 << 17, 1 << 21])
    def test_any_view_is_filled_with_the_right_bytes(self, make: MakeSource, view_bytes: int) -> None:
        data = DATA[:5000] if view_bytes < 100 else DATA
        assert received(make(data).open(descriptor(data), 0), view_bytes) == data

    @pytest.mark.parametrize("offset", [1, 4096, 700_001, len(DATA) - 1])
    def test_from_an_offset_the_rest_comes_or_the_whole(self, make: MakeSource, offset: int) -> None:
        opened = make(DATA).open(descriptor(DATA), offset)
        assert opened.offset in {0, offset}
        assert received(opened) == DATA[opened.offset :]

    def test_the_end_stays_the_end(self, make: MakeSource) -> None:
        with make(DATA).open(descriptor(DATA), len(DATA) - 1) as opened:
            received(opened)
            assert opened.readinto(memoryview(bytearray(10))) == 0

    def test_one_that_was_left_in_the_middle_can_be_opened_again(self, make: MakeSource) -> None:
        source = make(DATA)
        opened = source.open(descriptor(DATA), 0)
        assert opened.readinto(memoryview(bytearray(1000))) == 1000
        opened.close()
        opened.close()
        assert received(source.open(descriptor(DATA), 0)) == DATA

    def test_several_are_received_at_once(self, make: MakeSource) -> None:
        source, results = make(DATA), list[bytes]()

        def receive() -> None:
            results.append(received(source.open(descriptor(DATA), 0), 10_000))

        threads = [threading.Thread(target=receive) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [DATA] * 4

    def test_what_is_not_there_is_not_found(self, make: MakeSource) -> None:
        with pytest.raises(NotFound), closing(make(DATA).open(descriptor(b"something else"), 0)):
            pass

    @pytest.mark.parametrize("difference", [-1, 1, 1 << 40])
    def test_another_size_than_the_descriptors_is_told_before_or_by_the_bytes(
        self, make: MakeSource, difference: int
    ) -> None:
        """Never does it look like the descriptor's blob."""
        wrong = replace(descriptor(DATA), size=len(DATA) + difference)
        try:
            data = received(make(DATA).open(wrong, 0))
        except (IntegrityError, Unavailable) as e:
            assert str(wrong.digest) in str(e)
        else:
            assert len(data) != wrong.size

    def test_its_name_fits_into_a_file_name_and_stays(self, make: MakeSource) -> None:
        source = make(DATA)
        assert source.name
        assert source.name.isprintable()
        assert "/" not in source.name
        assert len(source.name.encode()) < 200
        assert source.name == source.name

    def test_blame_comes_to_an_end(self, make: MakeSource) -> None:
        source, blamed = make(DATA), 0
        received(source.open(descriptor(DATA), 0))
        while source.blame(descriptor(DATA), "wrong bytes"):
            blamed += 1
            assert blamed < 10
            received(source.open(descriptor(DATA), 0))
