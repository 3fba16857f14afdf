"""Power cuts under trees and layers: a tree whose view was written shows every file whole afterwards."""

from __future__ import annotations

import gzip
from contextlib import closing
from pathlib import Path

import pytest

from modelmount.content import debris
from modelmount.content import ingest as ingests
from modelmount.content.ingest import Ingest
from modelmount.content.store import Store
from modelmount.formats.base import Encoding, File, Placement
from modelmount.oci.digest import Digest
from modelmount.snapshots import layers, tree, unpack
from modelmount.snapshots.isolated import Whole
from tests.fakes.archives import END, file
from tests.unit.content.downloads import SCOPE, content, download, feed, open_ingest
from tests.unit.content.powercut import JOURNAL_ONLY, NOTHING, powered

from .archives import LIMITS

WEIGHTS = content(3 << 20)
FILES = {f"layer/{n:02}": content(1000 + n, str(n)) for n in range(40)}
ARCHIVE = gzip.compress(b"".join(file(name.encode(), data) for name, data in FILES.items()) + END)
MANIFEST = Digest.of(b"manifest")
RULES = unpack.rules(Encoding.TAR_GZIP)


def unpacked(store: Store) -> Ingest:
    """The archive downloaded and unpacked, not committed."""
    ingest = open_ingest(store, ARCHIVE, form=ingests.UNPACKED)
    feed(ingest, ARCHIVE)
    with closing(Whole(ingest.path)) as archive:
        layers.build(archive, Encoding.TAR_GZIP, ingest.directory / "layer", LIMITS, lambda: False)
    return ingest


def publish(store: Store) -> tree.Tree:
    ingest = unpacked(store)
    ingest.commit_unpacked(ingest.directory / "layer", RULES)
    download(store, WEIGHTS)
    members = layers.members(store, Digest.of(ARCHIVE), RULES)
    source = f"{Digest.of(ARCHIVE).hex}/{RULES}"
    files = [File(m.path, f"{source}/{m.number}", m.size) for m in members]
    files.append(File("weights", Digest.of(WEIGHTS).hex, len(WEIGHTS)))
    with store.locks.shared():
        return tree.build(store, SCOPE, MANIFEST, "all", Placement(tuple(files), ("layer",)))


@pytest.mark.mount
@pytest.mark.parametrize("flag", [JOURNAL_ONLY, NOTHING], ids=["journal without data", "nothing flushed"])
def test_a_tree_that_was_built_is_whole_after_a_cut(tmp_path: Path, flag: int) -> None:
    with powered(tmp_path) as disk:
        built = publish(Store(disk.path / "store"))
        disk.cut(flag)
        disk.return_power()
        store = Store(disk.path / "store")
        debris.clear(store)
        assert tree.find(store, SCOPE, MANIFEST, "all") == built
        found = {p.relative_to(built.root).as_posix(): p for p in built.root.rglob("*") if p.is_file()}
        assert {name: path.read_bytes() for name, path in found.items()} == {**FILES, "weights": WEIGHTS}
        assert {path.stat().st_mode & 0o7777 for path in found.values()} == {0o444}


@pytest.mark.mount
def test_a_layer_that_was_not_committed_is_made_again(tmp_path: Path) -> None:
    with powered(tmp_path) as disk:
        ingest = unpacked(Store(disk.path / "store"))
        ingest.flush()
        disk.cut(JOURNAL_ONLY)
        ingest.close()
        disk.return_power()
        store = Store(disk.path / "store")
        ingest = open_ingest(store, ARCHIVE, form=ingests.UNPACKED)
        assert ingest.offset == len(ARCHIVE)
        layers.clear(ingest.directory / "layer")
        ingest.close()
        assert tree.files(store, publish(store))[0][0] == "layer/00"
