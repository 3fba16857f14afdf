"""Small blobs in groups: one commit for many, and every fault of one of them is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelmount.config import Limits
from modelmount.content import ingest as ingests
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, Cancelled, IntegrityError, Unavailable
from modelmount.formats.base import Encoding
from modelmount.pull import fetch, smalls
from modelmount.pull.fetch import Cancel
from modelmount.pull.plan import Part
from modelmount.pull.progress import Progress
from modelmount.pull.smalls import Group
from modelmount.snapshots import layers, unpack
from modelmount.transport.retry import Policy
from tests.fakes.archives import END, file
from tests.fakes.source import Fault, MemorySource
from tests.faults import oracle
from tests.unit.content.downloads import recorded

SCOPE = "0" * 32


class Bench:
    """A store, and a source with ten small blobs."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "store")
        self.source = MemorySource()
        self.parts = [Part(self.source.put(b"small %d" % n * 100), Encoding.RAW) for n in range(10)]
        self.progress = Progress()
        self.progress.expect(part.expected for part in self.parts)
        self.cancel = Cancel()
        self.limits = Limits(free_bytes=0)

    def fetch(self) -> list[Part]:
        return Group(self.store, SCOPE, self.source, self.progress, self.cancel, self.limits).fetch(self.parts)

    def stored(self) -> int:
        return sum(self.store.has_blob(part.descriptor.digest, SCOPE) for part in self.parts)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(Policy, "delay", lambda self, failures, retry_after=None: 0.0)
    return Bench(tmp_path)


def test_a_group_is_fetched_with_one_request_each_and_leaves_no_locks(bench: Bench) -> None:
    assert bench.fetch() == []
    assert bench.stored() == 10
    assert len(bench.source.opens) == 10
    assert bench.progress.snapshot().files_ready == 10
    assert list((bench.store.root / "locks").glob("ingest-*")) == []
    assert list((bench.store.root / "ingest").iterdir()) == []


def test_the_last_parts_are_not_fetched_in_groups_of_one() -> None:
    waiting, shares = 3000, []
    while waiting:
        shares.append(min(waiting, smalls.share(waiting, 8)))
        waiting -= shares[-1]
    assert shares[:2] == [smalls.GROUP_FILES, smalls.GROUP_FILES]
    assert all(count >= smalls.SHARE_FILES for count in shares[:-1])
    assert smalls.share(3, 16) >= 3  # one group instead of three


def test_what_is_here_already_is_not_asked_for(bench: Bench) -> None:
    bench.fetch()
    bench.source.opens.clear()
    assert bench.fetch() == []
    assert bench.source.opens == []


def test_what_somebody_else_is_at_comes_back(bench: Bench) -> None:
    name = ingests.name(bench.parts[3].descriptor.digest, SCOPE, ingests.RAW)
    with bench.store.small_locks() as locks:
        assert locks.take(name)
        assert bench.fetch() == [bench.parts[3]]
    assert bench.stored() == 9


def test_a_wait_for_somebody_else_ends_with_them_or_with_a_cancel(bench: Bench) -> None:
    part = bench.parts[3]
    smalls.wait(bench.store, SCOPE, part, bench.cancel)
    with bench.store.small_locks() as locks:
        assert locks.take(ingests.name(part.descriptor.digest, SCOPE, ingests.RAW))
        bench.cancel.set()
        with pytest.raises(Cancelled):
            smalls.wait(bench.store, SCOPE, part, bench.cancel)


def test_cut_answers_are_asked_for_again(bench: Bench) -> None:
    bench.source.faults.extend([Fault(cut=3), Fault(cut=0), Fault(error=Unavailable("busy"))])
    bench.fetch()
    assert bench.stored() == 10
    assert len(bench.source.opens) == 13


def test_while_it_waits_to_ask_again_it_says_why(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Cancel, "sleep", lambda self, seconds: said.append(bench.progress.snapshot().trouble))
    bench.source.faults.append(Fault(error=Unavailable("the registry is busy")))
    bench.fetch()
    assert said == ["the last request failed: the registry is busy"]
    assert bench.progress.snapshot().trouble == ""


def test_wrong_bytes_bar_that_blob_and_the_others_before_it_stay(bench: Bench) -> None:
    bench.source.faults.extend([Fault(), Fault(), Fault(flip=1)])
    with pytest.raises(IntegrityError, match="wrong bytes"):
        bench.fetch()
    assert bench.stored() == 2
    with pytest.raises(IntegrityError, match="not asked again for"):
        bench.fetch()


def test_wrong_bytes_are_fetched_again_while_there_is_somebody_to_blame(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [True, True]
    monkeypatch.setattr(bench.source, "blame", lambda descriptor, reason: bool(answers) and answers.pop())
    bench.source.faults.extend([Fault(flip=1), Fault(flip=2)])
    assert bench.fetch() == []
    assert bench.stored() == 10
    assert len(bench.source.opens) == 12
    snapshot = bench.progress.snapshot()
    assert snapshot.bytes_done == sum(part.descriptor.size for part in bench.parts)


def test_too_many_bytes_are_refused(bench: Bench) -> None:
    bench.source.faults.append(Fault(extra=b"x"))
    with pytest.raises(IntegrityError, match="more than"):
        bench.fetch()


def test_a_source_that_stays_down_ends_the_group(bench: Bench) -> None:
    bench.source.faults.append(Fault())
    bench.source.faults.extend([Fault(error=Unavailable("down"))] * fetch.ATTEMPTS)
    with pytest.raises(Unavailable):
        bench.fetch()
    assert bench.stored() == 1


def test_a_cancelled_group_stops_and_keeps_what_is_whole(bench: Bench) -> None:
    bench.source.gate = lambda digest, position: (
        bench.cancel.set() if digest == bench.parts[4].descriptor.digest else None
    )
    with pytest.raises(Cancelled):
        bench.fetch()
    assert bench.stored() == 4


def test_archives_and_large_files_are_not_fetched_this_way(bench: Bench) -> None:
    descriptor = bench.source.put(b"x" * (smalls.SMALL_FILE_BYTES + 1))
    assert not smalls.fits(Part(descriptor, Encoding.RAW))
    assert not smalls.fits(Part(descriptor, Encoding.TAR))
    assert not smalls.fits(Part(bench.parts[0].descriptor, Encoding.TAR_GZIP))
    assert smalls.fits(Part(bench.parts[0].descriptor, Encoding.TAR))
    assert smalls.fits(bench.parts[0])


# -- small archives, a file in each, as modctl makes them


def packed(bench: Bench) -> list[Part]:
    """Ten of them instead of the ten files."""
    bench.parts = [Part(bench.source.put(file(b"%d" % n, b"small %d" % n) + END), Encoding.TAR) for n in range(10)]
    bench.progress.expect(part.expected for part in bench.parts)
    return bench.parts


def test_small_archives_are_committed_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = packed(bench)
    with recorded(monkeypatch, bench.store.root) as happened:
        assert bench.fetch() == []
    assert [line for line in happened if "sync" in line] == ["syncfs", "syncfs"]
    assert len(bench.source.opens) == 10
    assert bench.progress.snapshot().files_ready == 10
    for n, part in enumerate(parts):
        assert part.present(bench.store, SCOPE)
        (member,) = layers.members(bench.store, part.descriptor.digest, unpack.rules(Encoding.TAR))
        assert member.path == str(n)
    assert oracle.faults(bench.store.root) == []
    assert list((bench.store.root / "locks").glob("ingest-*")) == []


def test_one_small_archive_alone_is_as_durable(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (part,) = bench.parts = packed(bench)[:1]
    with recorded(monkeypatch, bench.store.root) as happened:
        assert bench.fetch() == []
    digest = part.descriptor.digest
    named = happened.index(f"rename unpacked/{digest.hex}/{unpack.rules(Encoding.TAR)}")
    synced = " ".join(happened[:named])
    assert all(name in synced for name in ("/files/512 444", "/rest 444", "/index.json", f"scopes/{digest.hex}/"))
    assert part.present(bench.store, SCOPE)


def test_a_bad_archive_ends_the_group_and_the_others_before_it_stay(bench: Bench) -> None:
    parts = packed(bench)
    parts[2] = Part(bench.source.put(file(b"../x") + END), Encoding.TAR)
    bench.progress.expect(part.expected for part in parts)
    with pytest.raises(BadArtifact, match=f"archive {parts[2].descriptor.digest}: .*has the component"):
        bench.fetch()
    assert [part.present(bench.store, SCOPE) for part in parts] == [n < 2 for n in range(10)]
    assert oracle.half_made(bench.store.root) == []


def test_an_archive_that_is_here_as_a_blob_is_not_asked_for(bench: Bench) -> None:
    (part,) = bench.parts = packed(bench)[:1]
    digest = part.descriptor.digest
    bench.store.put_document(bench.source.blobs[digest], digest, SCOPE)
    assert bench.fetch() == []
    assert bench.source.opens == []
    assert part.present(bench.store, SCOPE)
