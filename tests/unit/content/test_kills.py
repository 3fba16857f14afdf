"""SIGKILL at every step of a commit: afterwards names are complete, and what was received isn't received again."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from modelmount import content
from modelmount.content import debris, ranges
from modelmount.content import ingest as ingests
from modelmount.content.store import NewLayer, Store
from modelmount.oci.digest import Digest
from tests.unit.system.processes import start, stop

from . import downloads
from .downloads import PIECE, SCOPE, feed, open_ingest

DATA = downloads.content(2 * PIECE + 5)
DIGEST = Digest.of(DATA)
ALL_POINTS = sorted(
    point
    for point in set(
        re.findall(
            r'failpoint\("(content\.[a-z_.]+)"',
            "".join(path.read_text() for path in Path(content.__file__).parent.glob("*.py")),
        )
    )
    if not point.startswith("content.migration.")  # test_migration kills there
)
GROUP_POINTS = [point for point in ALL_POINTS if point.startswith("content.group.")]
POINTS = [point for point in ALL_POINTS if point not in GROUP_POINTS]
GROUP = [downloads.content(1000 + n, f"small {n}") for n in range(20)]

PULL = """
import sys
from pathlib import Path
from modelmount.content import ingest as ingests
from modelmount.content.store import Store
from tests.unit.content import downloads
from tests.unit.content.test_kills import DATA
store, form = Store(Path(sys.argv[1])), sys.argv[2]
ingest = downloads.open_ingest(store, DATA, form=form)
downloads.feed(ingest, DATA)
ingest.flush()
if form == ingests.RAW:
    ingest.commit_blob()
else:
    layer = ingest.directory / "layer"
    (layer / "files").mkdir(parents=True)
    (layer / "files" / "0").write_bytes(DATA)
    (layer / "index.json").write_bytes(b"[]")
    ingest.commit_unpacked(layer, 1)
"""


def make_layer(directory: Path) -> None:
    (directory / "files").mkdir(parents=True)
    (directory / "files" / "0").write_bytes(b"member")
    (directory / "index.json").write_bytes(b"[]")


LAYERS = [NewLayer(Digest.of(b"archive %d" % n), 1, make_layer) for n in range(3)]

GATHER = """
import sys
from pathlib import Path
from modelmount.content.store import Store
from modelmount.oci.digest import Digest
from tests.unit.content.downloads import SCOPE
from tests.unit.content.test_kills import GROUP, LAYERS
Store(Path(sys.argv[1])).put_group({Digest.of(data): data for data in GROUP}, SCOPE, LAYERS)
"""


def is_committed(store: Store, form: str) -> bool:
    return store.holds(DIGEST.hex, SCOPE, unpacked=form == ingests.UNPACKED)


def committed_bytes(store: Store, form: str) -> bytes:
    layer = store.unpacked_path(DIGEST, 1)
    return (store.blob_path(DIGEST) if form == ingests.RAW else layer / "files" / "0").read_bytes()


@pytest.mark.parametrize("point", POINTS)
def test_killed_there_nothing_is_torn_and_nothing_fetched_is_lost(store: Store, point: str) -> None:
    form = ingests.UNPACKED if "unpacked" in point else ingests.RAW
    process = start(PULL, str(store.root), form, env={"MODELMOUNT_FAILPOINTS": f"{point}=kill"})
    try:
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        stop(process)
    assert is_committed(store, form) == point.endswith("after_rename")
    debris.clear(store)
    if is_committed(store, form):
        assert committed_bytes(store, form) == DATA
        assert list((store.root / "ingest").iterdir()) == []
        return
    assert not store.blob_path(DIGEST).exists()
    assert not store.unpacked_path(DIGEST, 1).exists()
    ingest = open_ingest(store, DATA, form=form)
    assert ingest.offset == len(DATA)
    if form == ingests.RAW:
        ingest.commit_blob()
    else:
        ingest.commit_unpacked(ingest.directory / "layer", 1)
    assert committed_bytes(store, form) == DATA


def test_every_step_is_killed_at() -> None:
    assert len(POINTS) >= 9
    assert len(GROUP_POINTS) >= 2


@pytest.mark.parametrize("point", GROUP_POINTS)
def test_killed_in_a_group_what_has_a_name_is_whole_and_the_rest_is_gone(store: Store, point: str) -> None:
    process = start(GATHER, str(store.root), env={"MODELMOUNT_FAILPOINTS": f"{point}=kill"})
    try:
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        stop(process)
    debris.clear(store)
    named = {path.name: path.read_bytes() for path in (store.root / "blobs/sha256").iterdir()}
    assert len(named) == (len(GROUP) if point.endswith("after_rename") else 0)
    assert all(Digest.of(data).hex == name for name, data in named.items())
    layers = [store.unpacked_path(layer.digest, layer.rules) for layer in LAYERS]
    assert {layer.exists() for layer in layers} == {point.endswith("after_rename")}
    assert [path for path in (store.root / "unpacked").glob("*/*") if path not in layers] == []
    store.put_group({Digest.of(data): data for data in GROUP}, SCOPE, LAYERS)
    assert all(store.has_blob(Digest.of(data), SCOPE) for data in GROUP)
    assert all(store.unpacked_rules(layer.digest, SCOPE) == 1 for layer in LAYERS)
    assert all((layer / "files" / "0").read_bytes() == b"member" for layer in layers)


def test_killed_while_receiving_only_the_piece_in_hand_is_lost(store: Store) -> None:
    code = PULL.replace("DATA)\ningest.flush()", "DATA, killed=True)\nimport os; os.kill(os.getpid(), 9)")
    process = start(code, str(store.root), ingests.RAW)
    try:
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        stop(process)
    ingest = open_ingest(store, DATA)
    assert ingest.offset == 2 * PIECE
    feed(ingest, DATA)
    ingest.commit_blob()
    assert committed_bytes(store, ingests.RAW) == DATA


SHARE = 8 * PIECE
SHARED = downloads.content(4 * SHARE, "shared")

PARALLEL_PULL = """
import mmap, os, sys, threading
from pathlib import Path
from modelmount.content.store import Store
from tests.unit.content import downloads
from tests.unit.content.test_kills import SHARE, SHARED
ingest = downloads.open_ingest(Store(Path(sys.argv[1])), SHARED)
progress = mmap.mmap(os.open(sys.argv[2], os.O_RDWR), 0)
def work(n):
    writer = ingest.writer(n * SHARE)
    while writer.offset < (n + 1) * SHARE:
        end = min(writer.offset + 130_000 - n, (n + 1) * SHARE)
        writer.append(memoryview(SHARED)[writer.offset:end])
        progress[8 * n:8 * n + 8] = writer.offset.to_bytes(8, "little")
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.stdin.read()
"""


@pytest.mark.parametrize("after", [1, 2 * SHARE, 4 * SHARE])
def test_killed_with_several_writers_each_loses_the_piece_in_hand_only(
    store: Store, tmp_path: Path, after: int
) -> None:
    shared = tmp_path / "progress"
    shared.write_bytes(b"".join((n * SHARE).to_bytes(8, "little") for n in range(4)))

    def progress() -> list[int]:
        data = shared.read_bytes()
        return [int.from_bytes(data[8 * n : 8 * n + 8], "little") for n in range(4)]

    process = start(PARALLEL_PULL, str(store.root), str(shared))
    try:
        downloads.wait_for(lambda: sum(progress()) - sum(n * SHARE for n in range(4)) >= after)
    finally:
        stop(process)
    ingest = open_ingest(store, SHARED)
    downloads.assert_right(ingest, SHARED)
    for n, reached in enumerate(progress()):
        missing = ranges.within(ingest.missing, n * SHARE, (n + 1) * SHARE)
        assert len(missing) <= 1
        assert not missing or reached - missing[0][0] < PIECE
    feed(ingest, SHARED)
    ingest.commit_blob()
    assert store.blob_path(Digest.of(SHARED)).read_bytes() == SHARED
