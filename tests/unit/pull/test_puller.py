"""Jobs of one process and of two: one download however many want the model, and every end leaves what is good."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client import REGISTRY

from modelmount.cache.admission import Admission
from modelmount.cache.collector import Collector
from modelmount.config import Auth, Settings
from modelmount.content import ingest as ingests
from modelmount.content import pulls
from modelmount.content.store import Store
from modelmount.errors import (
    BadArtifact,
    Cancelled,
    IntegrityError,
    Internal,
    InvalidRequest,
    ModelMountError,
    NotFound,
    Precondition,
    Unavailable,
)
from modelmount.formats.selection import EVERYTHING, Selection
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.pull import progress
from modelmount.pull.job import Job, State, Waiter
from modelmount.pull.puller import Puller
from modelmount.pull.resolver import Model, Resolver
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential
from modelmount.sources.base import BlobSource
from modelmount.sources.throttled import Bandwidth, ThrottledSource
from modelmount.system.lock import LockTimeout
from tests.fakes import push
from tests.fakes.source import Fault, MemorySource

REPOSITORY = Repository("registry.example.com", "llm/tiny")
ANONYMOUS = Credential.anonymous()
SECONDS = 60.0
WORKERS = ("fetch-", "hash-", "unpack-", "sync-")


class Bench:
    """One store, one source, and as many pullers on them as a test wants."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "store")
        self.source = MemorySource()
        self.bandwidth: Bandwidth | None = None
        self.settings = msgspec.convert(
            {"root": str(directory / "store"), "limits": {"free_bytes": 0}, "pull": {"idle_seconds": 300}}, Settings
        )
        self.clients: list[Client] = []
        self.pullers: list[Puller] = []

    def close(self) -> None:
        """Stop what was started; the store stays."""
        for puller in self.pullers:
            puller.stop(SECONDS)
        for client in self.clients:
            client.close()

    def admission(self) -> Admission:
        return Admission(Collector(self.store, lambda: self.settings.cache), lambda: self.settings)

    def puller(self, settings: Settings | None = None) -> Puller:
        client = Client(self.settings)
        self.clients.append(client)
        resolver = Resolver(self.store, client, Auth(verification="never"))
        made = Puller(
            self.store,
            resolver,
            lambda model, credential, is_awaited: self.made(is_awaited),
            self.admission(),
            settings or self.settings,
        )
        self.pullers.append(made)
        return made

    def made(self, is_awaited: Callable[[], bool]) -> BlobSource:
        """A job's source."""
        if self.bandwidth is None:
            return self.source
        return ThrottledSource(self.source, self.bandwidth, is_awaited)

    def model(self, *layers: tuple[str, bytes], media_type: str = "application/vnd.cncf.model.weight.v1.raw") -> Model:
        """A ModelPack model whose manifest this store has already, as the resolver leaves it."""
        descriptors = []
        for path, content in layers:
            descriptor = self.source.put(content)
            descriptors.append(
                {
                    "mediaType": media_type,
                    "digest": str(descriptor.digest),
                    "size": descriptor.size,
                    "annotations": {"org.cncf.model.filepath": path},
                }
            )
        config = self.source.put(b"{}")
        document = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": manifests.OCI_MANIFEST,
                "artifactType": push.MODELPACK_ARTIFACT,
                "config": {"mediaType": push.MODELPACK_CONFIG, "digest": str(config.digest), "size": config.size},
                "layers": descriptors,
            }
        ).encode()
        self.store.put_document(document, Digest.of(document), REPOSITORY.scope)
        return Model(REPOSITORY, Digest.of(document))

    def opened(self) -> Counter[Digest]:
        return Counter(digest for digest, _ in self.source.opens)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def tree_of(job: Job) -> Path:
    tree = job.wait(Waiter(), SECONDS)
    assert tree is not None
    return tree.root


def test_a_model_becomes_a_tree_of_its_files(bench: Bench) -> None:
    model = bench.model(("config.json", b"{}\n"), ("sub/model.bin", b"weights" * 1000))
    root = tree_of(bench.puller().ensure(model, EVERYTHING, ANONYMOUS))
    assert (root / "config.json").read_bytes() == b"{}\n"
    assert (root / "sub/model.bin").read_bytes() == b"weights" * 1000


def test_many_callers_share_one_job_and_one_download(bench: Bench) -> None:
    model = bench.model(("model.bin", os.urandom(200_000)))
    puller = bench.puller()
    jobs = {puller.ensure(model, EVERYTHING, ANONYMOUS) for _ in range(20)}
    assert len(jobs) == 1
    tree_of(jobs.pop())
    assert max(bench.opened().values()) == 1


def test_two_models_that_share_a_layer_fetch_it_once(bench: Bench) -> None:
    shared = ("model.bin", os.urandom(200_000))
    one = bench.model(shared, ("config.json", b"one"))
    two = bench.model(shared, ("config.json", b"two"))
    puller = bench.puller()
    jobs = [puller.ensure(model, EVERYTHING, ANONYMOUS) for model in (one, two)]
    roots = [tree_of(job) for job in jobs]
    assert bench.opened()[Digest.of(shared[1])] == 1
    assert (roots[0] / "model.bin").samefile(roots[1] / "model.bin")


def test_two_pullers_on_one_store_fetch_each_blob_once(bench: Bench) -> None:
    model = bench.model(*((f"model-{n}.bin", os.urandom(50_000)) for n in range(12)))
    roots = [tree_of(job) for job in [bench.puller().ensure(model, EVERYTHING, ANONYMOUS) for _ in range(2)]]
    assert max(bench.opened().values()) == 1
    assert roots[0] == roots[1]


def test_an_archive_is_unpacked_and_does_not_stay_behind(bench: Bench, tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / "sub").mkdir(parents=True)
    (files / "sub/a.bin").write_bytes(b"a" * 5000)
    archive = push.compress(push.tar_of([("sub", files / "sub"), ("sub/a.bin", files / "sub/a.bin")]), "tar+gzip")
    model = bench.model((".", archive), media_type="application/vnd.cncf.model.weight.v1.tar+gzip")
    root = tree_of(bench.puller().ensure(model, EVERYTHING, ANONYMOUS))
    assert (root / "sub/a.bin").read_bytes() == b"a" * 5000
    assert not bench.store.blob_path(Digest.of(archive)).exists()
    assert list((bench.store.root / "ingest").iterdir()) == []


def test_a_finished_job_holds_its_record_until_a_lease_stands(bench: Bench) -> None:
    puller = bench.puller()
    job = puller.ensure(bench.model(("a", b"a")), EVERYTHING, ANONYMOUS)
    tree_of(job)
    assert len(list(pulls.live_records(bench.store))) == 1
    puller.release(job)
    assert list(pulls.live_records(bench.store)) == []
    assert list((bench.store.root / "pulls").iterdir()) == []


def test_a_failed_job_leaves_no_record_and_the_next_call_starts_anew(bench: Bench) -> None:
    model = bench.model(("model.bin", os.urandom(100_000)))
    bench.source.faults.append(Fault(error=NotFound("gone")))
    puller = bench.puller()
    job = puller.ensure(model, EVERYTHING, ANONYMOUS)
    with pytest.raises(NotFound):
        job.wait(Waiter(), SECONDS)
    assert job.state is State.FAILED
    assert list(pulls.live_records(bench.store)) == []
    tree_of(puller.ensure(model, EVERYTHING, ANONYMOUS))


def test_one_bad_blob_ends_the_job_and_the_good_ones_stay(bench: Bench) -> None:
    good, bad = os.urandom(50_000), os.urandom(60_000)
    model = bench.model(("a-good.bin", good), ("b-bad.bin", bad))
    settings = msgspec.structs.replace(bench.settings, pull=msgspec.structs.replace(bench.settings.pull, connections=1))
    bench.source.faults.extend([Fault(), Fault(flip=5)])
    with pytest.raises(IntegrityError, match="wrong bytes"):
        bench.puller(settings).ensure(model, EVERYTHING, ANONYMOUS).wait(Waiter(), SECONDS)
    assert bench.store.has_blob(Digest.of(good), REPOSITORY.scope)
    assert not bench.store.has_blob(Digest.of(bad), REPOSITORY.scope)


def test_a_verdict_on_the_bytes_is_remembered_without_another_download(bench: Bench) -> None:
    model = bench.model((".", b"this is no tar" * 100), media_type="application/vnd.cncf.model.weight.v1.tar")
    puller = bench.puller()
    for _ in range(2):
        with pytest.raises(BadArtifact):
            puller.ensure(model, EVERYTHING, ANONYMOUS).wait(Waiter(), SECONDS)
    assert max(bench.opened().values()) == 1


def test_stopping_cancels_the_job_and_keeps_its_bytes(bench: Bench) -> None:
    content = os.urandom(6 << 20)
    model = bench.model(("model.bin", content))
    arrived, go_on = threading.Event(), threading.Event()
    bench.source.gate = hold_at(4 << 20, arrived, go_on)
    puller = bench.puller()
    job = puller.ensure(model, EVERYTHING, ANONYMOUS)
    assert arrived.wait(SECONDS)
    stopping = threading.Thread(target=puller.stop, args=(SECONDS,))
    stopping.start()
    while not job.cancel():
        job.ended.wait(0.01)
    go_on.set()
    stopping.join()
    with pytest.raises(Cancelled):
        job.wait(Waiter(), SECONDS)
    with pytest.raises(Cancelled):
        puller.ensure(model, EVERYTHING, ANONYMOUS)
    bench.source.gate = lambda digest, position: None
    tree_of(bench.puller().ensure(model, EVERYTHING, ANONYMOUS))
    resumed = [offset for digest, offset in bench.source.opens if digest == Digest.of(content)]
    assert resumed[0] == 0
    assert resumed[1] >= 3 << 20
    assert list(pulls.live_records(bench.store)) != []


def test_a_job_nobody_asks_for_stops_and_keeps_its_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bench.model(("model.bin", os.urandom(6 << 20)))
    arrived, go_on = threading.Event(), threading.Event()
    idle_seconds = Job.idle_seconds.__get__
    asked_for = property(lambda job: idle_seconds(job) if arrived.is_set() else 0.0)  # until it has begun
    monkeypatch.setattr(Job, "idle_seconds", asked_for)
    bench.source.gate = hold_at(2 << 20, arrived, go_on)
    settings = msgspec.structs.replace(
        bench.settings, pull=msgspec.structs.replace(bench.settings.pull, idle_seconds=0.2)
    )
    job = bench.puller(settings).ensure(model, EVERYTHING, ANONYMOUS)
    assert arrived.wait(SECONDS)
    while not job.cancel():
        job.ended.wait(0.01)
    go_on.set()
    assert job.ended.wait(SECONDS)
    assert job.state is State.FAILED
    assert list((bench.store.root / "ingest").glob("*/data"))


def test_another_selection_is_another_job(bench: Bench) -> None:
    model = bench.model(("a", b"a"))
    puller = bench.puller()
    assert puller.ensure(model, EVERYTHING, ANONYMOUS) is not puller.ensure(model, Selection(include=("*",)), ANONYMOUS)


def test_progress_and_metrics_of_a_pull_under_way_are_the_same(bench: Bench) -> None:
    weights = os.urandom(6 << 20)
    model = bench.model(("config.json", b"{}\n"), ("model.bin", weights))
    bench.store.put_document(b"{}\n", Digest.of(b"{}\n"), REPOSITORY.scope)
    arrived, go_on = threading.Event(), threading.Event()
    bench.source.gate = hold_at(4 << 20, arrived, go_on)
    job = bench.puller().ensure(model, EVERYTHING, ANONYMOUS)
    assert arrived.wait(SECONDS)
    now = job.snapshot()
    assert {file.name: file.state for file in now.files} == {"config.json": "found", "model.bin": "fetching"}
    assert now.bytes_total - now.bytes_done == len(weights) - (4 << 20)
    assert REGISTRY.get_sample_value("modelmount_pull_bytes_left") == now.bytes_total - now.bytes_done
    assert REGISTRY.get_sample_value("modelmount_pull_files_left") == 1
    go_on.set()
    tree_of(job)
    last = job.snapshot()
    assert (last.phase, last.bytes_done, last.files_ready) == ("linking", last.bytes_total, 2)
    assert REGISTRY.get_sample_value("modelmount_pull_bytes_left") == 0
    assert REGISTRY.get_sample_value("modelmount_pull_files_left") == 0


def test_a_job_that_may_not_fetch_links_what_is_here_and_opens_nothing(bench: Bench) -> None:
    model = bench.model(("config.json", b"{}\n"), ("model.bin", os.urandom(100_000)))
    puller = bench.puller()
    with pytest.raises(Precondition, match="not complete on this node"):
        puller.ensure(model, EVERYTHING, ANONYMOUS, fetch=False).wait(Waiter(), SECONDS)
    assert bench.source.opens == []
    root = tree_of(puller.ensure(model, EVERYTHING, ANONYMOUS))
    shutil.rmtree(root.parent)
    bench.source.opens.clear()
    assert tree_of(puller.ensure(model, EVERYTHING, ANONYMOUS, fetch=False)) == root
    assert (root / "config.json").read_bytes() == b"{}\n"
    assert bench.source.opens == []


def test_a_job_that_may_not_fetch_unpacks_an_archive_that_is_here(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"a" * 5000)
    archive = push.compress(push.tar_of([("a.bin", tmp_path / "a.bin")]), "tar+gzip")
    model = bench.model((".", archive), media_type="application/vnd.cncf.model.weight.v1.tar+gzip")
    bench.store.put_document(archive, Digest.of(archive), REPOSITORY.scope)
    root = tree_of(bench.puller().ensure(model, EVERYTHING, ANONYMOUS, fetch=False))
    assert (root / "a.bin").read_bytes() == b"a" * 5000
    assert bench.source.opens == []


def test_who_may_not_fetch_does_not_wait_for_who_does(bench: Bench) -> None:
    model = bench.model(("model.bin", os.urandom(6 << 20)))
    arrived, go_on = threading.Event(), threading.Event()
    bench.source.gate = hold_at(0, arrived, go_on)
    puller = bench.puller()
    job = puller.ensure(model, EVERYTHING, ANONYMOUS)
    assert arrived.wait(SECONDS)
    with pytest.raises(Precondition):
        puller.ensure(model, EVERYTHING, ANONYMOUS, fetch=False).wait(Waiter(), SECONDS)
    go_on.set()
    tree_of(job)


def test_a_selection_fetches_what_it_shows_and_everything_fetches_the_rest(bench: Bench) -> None:
    files = {"config.json": b"{}\n", "model.safetensors": b"s" * 1000, "pytorch_model.bin": b"p" * 1000}
    model = bench.model(*files.items())
    puller = bench.puller()
    some = tree_of(puller.ensure(model, Selection(files="vllm"), ANONYMOUS))
    assert {path.name for path in some.iterdir()} == {"config.json", "model.safetensors"}
    assert Digest.of(files["pytorch_model.bin"]) not in bench.opened()
    whole = tree_of(puller.ensure(model, EVERYTHING, ANONYMOUS))
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == files
    assert set(bench.opened().values()) == {1}
    assert (some / "model.safetensors").samefile(whole / "model.safetensors")


def test_a_cache_of_hugging_face_has_the_revision_as_a_file(bench: Bench) -> None:
    model = bench.model(("config.json", b"{}\n"), ("sub/model.bin", b"weights"))
    selection = Selection(hf_repo="org/tiny", sub_dir="hub")
    root = tree_of(bench.puller().ensure(model, selection, ANONYMOUS)) / "hub/models--org--tiny"
    revision = (root / "refs/main").read_text()
    assert revision == model.manifest.hex[:40]
    assert (root / "snapshots" / revision / "sub/model.bin").read_bytes() == b"weights"
    assert {path.name for path in root.iterdir()} == {"refs", "snapshots"}
    blobs = {path.name for path in (bench.store.root / "blobs/sha256").iterdir()}
    assert Digest.of(revision.encode()).hex in blobs


def test_a_selection_of_nothing_fetches_nothing_and_spoils_no_other(bench: Bench) -> None:
    model = bench.model(("config.json", b"{}\n"), ("model.bin", b"weights"))
    puller = bench.puller()
    with pytest.raises(InvalidRequest, match=r"left to show by include; it has 'config.json', 'model.bin'"):
        puller.ensure(model, Selection(include=("*.gguf",)), ANONYMOUS).wait(Waiter(), SECONDS)
    assert not bench.opened()
    assert tree_of(puller.ensure(model, Selection(include=("*.bin",)), ANONYMOUS))


def test_a_verdict_is_about_what_was_selected(bench: Bench) -> None:
    model = bench.model(("x", b"file"), ("x/y", b"below a file"), ("z", b"fine"))
    puller = bench.puller()
    for _ in range(2):
        with pytest.raises(BadArtifact, match="both a file and a directory"):
            puller.ensure(model, EVERYTHING, ANONYMOUS).wait(Waiter(), SECONDS)
    root = tree_of(puller.ensure(model, Selection(include=("z",)), ANONYMOUS))
    assert [path.name for path in root.iterdir()] == ["z"]


def test_a_registry_in_trouble_ends_the_job_with_its_words(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmount.pull.fetch.ATTEMPTS", 1)
    model = bench.model(("model.bin", os.urandom(100_000)))
    bench.source.faults.append(Fault(error=Unavailable("the registry is on fire")))
    with pytest.raises(Unavailable, match="on fire"):
        bench.puller().ensure(model, EVERYTHING, ANONYMOUS).wait(Waiter(), SECONDS)


def test_bytes_that_cannot_be_read_back_end_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmount.pull.fetch.WINDOW_BYTES", 2 << 20)
    model = bench.model(("model.bin", os.urandom(16 << 20)))

    def make_unreadable(digest: Digest, position: int) -> None:
        if position == 1 << 20:
            (fd,) = (int(n) for n in os.listdir("/proc/self/fd") if _link(n).endswith("/data"))
            blind = os.open(_link(str(fd)), os.O_WRONLY)
            os.dup2(blind, fd, inheritable=False)
            os.close(blind)

    bench.source.gate = make_unreadable
    with pytest.raises(Internal, match=r"read .* back"):
        bench.puller().ensure(model, EVERYTHING, ANONYMOUS).wait(Waiter(), SECONDS)


@pytest.mark.parametrize("name", ["pull-", "fetch-", "hash-", "unpack-", "sync-"])
def test_a_node_without_threads_fails_the_job_and_leaves_nothing_locked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("modelmount.content.checkpoints.KEEPER_BYTES", 1 << 20)
    archive = push.tar_of([("a.bin", _file(bench.store.root.parent / "a.bin", os.urandom(6 << 20)))])
    archive = push.compress(archive, "tar+gzip")
    model = bench.model((".", archive), media_type="application/vnd.cncf.model.weight.v1.tar+gzip")
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(name) and not thread.name.endswith("janitor"):
            raise RuntimeError("can't start new thread")
        start(thread)

    puller = bench.puller()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ModelMountError):
        puller.ensure(model, EVERYTHING, ANONYMOUS).wait(Waiter(), SECONDS)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(WORKERS)]
    tree_of(puller.ensure(model, EVERYTHING, ANONYMOUS))


def test_who_waits_for_another_pull_says_so_until_it_goes_on(bench: Bench) -> None:
    wanted = os.urandom(300_000)
    held = bench.store.lock("ingest-" + ingests.name(Digest.of(wanted), REPOSITORY.scope, ingests.RAW)).acquire()
    seen: list[str] = []
    bench.source.gate = lambda digest, position: seen.append(job.snapshot().trouble) if position else None
    job = bench.puller().ensure(bench.model(("model.bin", wanted)), EVERYTHING, ANONYMOUS)
    while not job.snapshot().trouble:
        assert not job.ended.wait(0.01)
    assert job.snapshot().trouble == progress.ELSEWHERE
    held.release()
    tree_of(job)
    assert seen
    assert set(seen) == {""}


def test_a_lock_that_was_waited_for_is_given_back_when_the_job_is_cancelled(bench: Bench) -> None:
    settings = msgspec.structs.replace(bench.settings, pull=msgspec.structs.replace(bench.settings.pull, connections=1))
    puller = bench.puller(settings)
    wanted, other, small = os.urandom(300_000), os.urandom(300_000), b"{}\n"
    lock = bench.store.lock("ingest-" + ingests.name(Digest.of(wanted), REPOSITORY.scope, ingests.RAW))
    held = lock.acquire()
    waiting = puller.ensure(bench.model(("config.json", small), ("model.bin", wanted)), EVERYTHING, ANONYMOUS)
    while not bench.store.has_blob(Digest.of(small), REPOSITORY.scope):
        waiting.ended.wait(0.01)
    arrived, go_on = threading.Event(), threading.Event()
    hold = hold_at(0, arrived, go_on)
    bench.source.gate = lambda digest, position: hold(digest, position) if digest == Digest.of(other) else None
    busy = puller.ensure(bench.model(("model.bin", other)), EVERYTHING, ANONYMOUS)
    assert arrived.wait(SECONDS)  # the other job has the only connection, which the first one gave back
    held.release()
    while True:
        try:
            lock.acquire(timeout=0).release()
        except LockTimeout:
            break  # the first job has the lock, and waits for a connection
        waiting.ended.wait(0.001)
    waiting.cancel.set()
    with pytest.raises(Cancelled):
        waiting.wait(Waiter(), SECONDS)
    lock.acquire(timeout=0).release()
    go_on.set()
    tree_of(busy)


def test_an_unpacked_part_that_cannot_be_removed_keeps_no_lock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = push.tar_of([("a.bin", _file(bench.store.root.parent / "a.bin", os.urandom(6 << 20)))])
    model = bench.model((".", archive), media_type="application/vnd.cncf.model.weight.v1.tar")

    def fail(digest: Digest, position: int) -> None:
        if position >= 2 << 20:
            monkeypatch.setattr("modelmount.snapshots.layers.clear", _refuse)
            raise NotFound("gone")

    puller = bench.puller()
    bench.source.gate = fail
    with pytest.raises(NotFound):
        puller.ensure(model, EVERYTHING, ANONYMOUS).wait(Waiter(), SECONDS)
    monkeypatch.undo()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(WORKERS)]
    bench.source.gate = lambda digest, position: None
    tree_of(puller.ensure(model, EVERYTHING, ANONYMOUS))


def _refuse(directory: Path) -> None:
    raise PermissionError(1, "Operation not permitted")


def _link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def hold_at(position: int, arrived: threading.Event, go_on: threading.Event) -> Callable[[Digest, int], None]:
    """A gate that reports when a download has come so far, and holds it there."""

    def gate(digest: Digest, at: int) -> None:
        if at >= position:
            arrived.set()
            go_on.wait(SECONDS)

    return gate
