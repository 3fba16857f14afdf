"""Power cuts on a real file system: what was acknowledged is whole, what was checkpointed is resumed, and nothing torn
is believed.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from modelmount.content import checkpoints, debris, ranges
from modelmount.content import ingest as ingests
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.errors import Internal
from modelmount.oci.digest import Digest

from .downloads import (
    PIECE,
    SCOPE,
    assert_right,
    content,
    descriptors,
    directory,
    download,
    feed,
    open_ingest,
    wait_for,
    write,
    written,
)
from .powercut import JOURNAL_ONLY, NOTHING, Disk, powered

PARTIAL = content(12 * PIECE, "partial")


def commit_layer(store: Store, data: bytes) -> None:
    ingest = open_ingest(store, data, form=ingests.UNPACKED)
    layer = ingest.directory / "layer"
    (layer / "files").mkdir(parents=True)
    for n in range(30):
        (layer / "files" / str(n)).write_bytes(data + b"%d" % n)
    (layer / "index.json").write_bytes(b"[]")
    ingest.commit_unpacked(layer, 1)


def acknowledged(store: Store, seed: str) -> tuple[bytes, bytes, bytes]:
    """A document, a blob and a layer whose commits returned."""
    document, blob, archive = (content(size, seed + str(size)) for size in (900, 2 * PIECE + 7, 5000))
    store.put_document(document, Digest.of(document), SCOPE)
    download(store, blob)
    commit_layer(store, archive)
    return document, blob, archive


def assert_whole(store: Store, document: bytes, blob: bytes, archive: bytes) -> None:
    assert store.read_document(Digest.of(document)) == document
    assert store.has_blob(Digest.of(blob), SCOPE)
    assert store.blob_path(Digest.of(blob)).read_bytes() == blob
    assert store.blob_path(Digest.of(blob)).stat().st_mode & 0o777 == 0o444
    assert store.unpacked_rules(Digest.of(archive), SCOPE) == 1
    layer = store.unpacked_path(Digest.of(archive), 1)
    assert all((layer / "files" / str(n)).read_bytes() == archive + b"%d" % n for n in range(30))


def cut(disk: Disk, flag: int, ingest: Ingest) -> Store:
    """Cut the power under an open download; the store that the next start finds."""
    disk.cut(flag)
    return restarted(disk, ingest)


def restarted(disk: Disk, ingest: Ingest) -> Store:
    """The store that the next start finds after a cut."""
    ingest.close()
    disk.return_power()
    store = Store(disk.path / "store")
    debris.clear(store)
    return store


@pytest.mark.mount
@pytest.mark.parametrize("flag", [JOURNAL_ONLY, NOTHING], ids=["journal without data", "nothing flushed"])
def test_the_acknowledged_is_whole_and_the_checkpointed_resumed(tmp_path: Path, flag: int) -> None:
    with powered(tmp_path) as disk:
        store = Store(disk.path / "store")
        before = []
        for seed in ("first", "second"):
            before.append(acknowledged(store, seed))
            ingest = open_ingest(store, PARTIAL)
            checkpoint = ingest.offset + 2 * PIECE + 333
            feed(ingest, PARTIAL, checkpoint, killed=True)
            ingest.flush()
            feed(ingest, PARTIAL, checkpoint + 3 * PIECE, killed=True)

            store = cut(disk, flag, ingest)

            for made in before:
                assert_whole(store, *made)
            ingest = open_ingest(store, PARTIAL)
            assert ingest.offset >= checkpoint
            assert_right(ingest, PARTIAL)
            ingest.close()
        download(store, PARTIAL)
        assert store.blob_path(Digest.of(PARTIAL)).read_bytes() == PARTIAL


@pytest.mark.mount
def test_a_commit_that_was_never_acknowledged_is_whole_or_absent(tmp_path: Path) -> None:
    with powered(tmp_path) as disk:
        store = Store(disk.path / "store")
        data = content(3 * PIECE, "last")
        ingest = open_ingest(store, data)
        feed(ingest, data)
        ingest.path.rename(store.blob_path(Digest.of(data)).with_name(".half"))
        store = cut(disk, JOURNAL_ONLY, ingest)
        assert not store.has_blob(Digest.of(data), SCOPE)
        assert list((store.root / "blobs/sha256").iterdir()) == []
        download(store, data)
        assert store.blob_path(Digest.of(data)).read_bytes() == data


@pytest.mark.mount
@pytest.mark.parametrize("flag", [JOURNAL_ONLY, NOTHING], ids=["journal without data", "nothing flushed"])
def test_a_cut_under_several_writers_takes_two_checkpoints_at_most(tmp_path: Path, flag: int) -> None:
    assert 2 * checkpoints.CHECKPOINT_BYTES <= 64 << 20
    data, share = content(192 << 20), 48 << 20
    with powered(tmp_path, 400 << 20) as disk:
        ingest = open_ingest(Store(disk.path / "store"), data)

        def fill(first: int) -> None:
            try:
                write(ingest.writer(first), memoryview(data)[: first + share])
            except Internal:  # the disk has gone
                return

        threads = [threading.Thread(target=fill, args=(first,)) for first in range(0, len(data), share)]
        for thread in threads:
            thread.start()
        wait_for(lambda: written(ingest) > 128 << 20)
        before = ingest.missing
        disk.cut(flag)
        for thread in threads:
            thread.join()
        ingest = open_ingest(restarted(disk, ingest), data)
        assert_right(ingest, data)
        lost = sum(
            last - first
            for gap in ranges.between(before, len(data))
            for first, last in ranges.within(ingest.missing, *gap)
        )
        assert lost <= 64 << 20
        ingest.discard()


@pytest.mark.mount
def test_a_disk_that_dies_takes_nothing_else_with_it(tmp_path: Path) -> None:
    with powered(tmp_path) as disk:
        store, before = Store(disk.path / "store"), descriptors()
        ingest = open_ingest(store, PARTIAL)
        feed(ingest, PARTIAL, PIECE)
        disk.cut(NOTHING)
        with pytest.raises(Internal, match="look at the node's disk"):
            ingest.flush()
        ingest.close()
        assert descriptors() == before
        disk.return_power()
        download(Store(disk.path / "store"), PARTIAL)
        assert not directory(store, PARTIAL).exists()
