"""Layers: built whole or not at all, and read back as they were."""

from __future__ import annotations

import gzip
from contextlib import closing
from pathlib import Path

import pytest

from modelmount.content.store import Store
from modelmount.errors import BadArtifact, Cancelled, Internal
from modelmount.formats.base import Encoding, Member
from modelmount.oci.digest import Digest
from modelmount.snapshots import layers
from modelmount.snapshots.isolated import Whole
from tests.fakes.archives import END, directory, file

from .archives import LIMITS

SCOPE = "ab" * 16
ARCHIVE = gzip.compress(directory(b"d") + file(b"d/a", b"one") + file(b"b", b"two") + END)
DIGEST = Digest.of(ARCHIVE)


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(ARCHIVE)
    return path


def build(blob: Path, destination: Path, encoding: Encoding = Encoding.TAR_GZIP) -> None:
    with closing(Whole(blob)) as stream:
        layers.build(stream, encoding, destination, LIMITS, lambda: False)


def test_a_committed_layer_is_read_back_as_it_was_unpacked(store: Store, blob: Path, tmp_path: Path) -> None:
    build(blob, tmp_path / "layer")
    store.commit_unpacked(tmp_path / "layer", DIGEST, 1, SCOPE)
    assert layers.members(store, DIGEST, 1) == (
        Member(0, "d", True, 0, ""),
        Member(1, "d/a", False, 3, Digest.of(b"one").hex),
        Member(2, "b", False, 3, Digest.of(b"two").hex),
    )
    assert layers.source_path(store, f"{DIGEST.hex}/1/2").read_bytes() == b"two"


@pytest.mark.parametrize(
    ("encoding", "cancelled", "error"),
    [(Encoding.TAR_ZSTD, False, BadArtifact), (Encoding.TAR_GZIP, True, Cancelled), (Encoding.TAR, False, BadArtifact)],
)
def test_what_fails_leaves_nothing_on_the_disk(
    blob: Path, tmp_path: Path, encoding: Encoding, cancelled: bool, error: type[Exception]
) -> None:
    with closing(Whole(blob)) as stream, pytest.raises(error):
        layers.build(stream, encoding, tmp_path / "layer", LIMITS, lambda: cancelled)
    assert not (tmp_path / "layer").exists()
    assert blob.read_bytes() == ARCHIVE


def test_a_half_made_layer_is_cleared_before_the_next_attempt(blob: Path, tmp_path: Path) -> None:
    half_made = tmp_path / "layer"
    (half_made / "files").mkdir(parents=True)
    (half_made / "files" / "1").write_bytes(b"half")
    with pytest.raises(FileExistsError):
        build(blob, half_made)
    assert (half_made / "files" / "1").read_bytes() == b"half"
    layers.clear(half_made)
    layers.clear(half_made)
    build(blob, half_made)
    assert (half_made / "files" / "1").read_bytes() == b"one"


def test_the_digest_of_the_decompressed_archive_is_passed_on(blob: Path, tmp_path: Path) -> None:
    with closing(Whole(blob)) as stream, pytest.raises(BadArtifact, match="where its manifest says"):
        layers.build(
            stream, Encoding.TAR_GZIP, tmp_path / "layer", LIMITS, lambda: False, uncompressed=Digest.of(b"else")
        )


@pytest.mark.parametrize("content", [None, b"{", b'[{"path": 1}]'])
def test_an_unreadable_index_says_what_to_run(store: Store, content: bytes | None) -> None:
    path = store.unpacked_path(DIGEST, 1)
    path.mkdir(parents=True)
    if content is not None:
        (path / "index.json").write_bytes(content)
    with pytest.raises(Internal, match="modelmount doctor"):
        layers.members(store, DIGEST, 1)


def test_sources_name_files_of_the_store(store: Store) -> None:
    long = "ab" * 64
    assert layers.source_path(store, DIGEST.hex) == store.root / "blobs/sha256" / DIGEST.hex
    assert layers.source_path(store, long) == store.root / "blobs/sha512" / long
    assert layers.source_path(store, f"{long}/1001/7") == store.root / "unpacked" / long / "1001/files/7"
