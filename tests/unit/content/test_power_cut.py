"""Power cuts on a real file system: what was acknowledged is whole, what was checkpointed is resumed, and nothing torn
is believed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelmount.content import debris
from modelmount.content import ingest as ingests
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.oci.digest import Digest

from .downloads import PIECE, SCOPE, content, download, feed, open_ingest
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
            feed(ingest, PARTIAL, checkpoint)
            ingest.flush()
            feed(ingest, PARTIAL, checkpoint + 3 * PIECE)

            store = cut(disk, flag, ingest)

            for made in before:
                assert_whole(store, *made)
            ingest = open_ingest(store, PARTIAL)
            assert ingest.offset >= checkpoint
            assert os.pread(ingest.fd, len(PARTIAL), 0) == PARTIAL[: ingest.offset]
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
