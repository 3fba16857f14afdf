"""From a reference to a manifest on disk: which requests that takes is counted in a real registry's log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from modelmount.config import Auth, Settings
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, NotFound, Precondition, Unavailable
from modelmount.formats import ANY, Choice
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Reference
from modelmount.pull.resolver import PullPolicy, Resolver
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential
from tests.fakes import push
from tests.fakes.registry import Registry

pytestmark = pytest.mark.registry


class Bench:
    """A registry with one model, a store, and resolvers on them."""

    def __init__(self, registry: Registry, directory: Path) -> None:
        self.registry = registry
        self.pusher = push.Pusher(registry.host, registry.connection)
        self.files = directory / "model"
        self.files.mkdir()
        (self.files / "config.json").write_text("{}")
        self.pushed = self.pusher.artifact("llm/tiny", "v1", push.modelpack(self.files))
        self.store = Store(directory / "store")
        settings = msgspec.convert({"registries": {registry.host: {"plain_http": True}}}, Settings)
        self.client = Client(settings)
        self.resolver = Resolver(self.store, self.client, Auth())
        registry.forget()

    def resolve(self, text: str | None = None, policy: PullPolicy = "IfNotPresent", choice: Choice = ANY) -> str:
        reference = Reference.parse(text or self.pushed.reference)
        return str(self.resolver.resolve(reference, policy, Credential.anonymous(), choice).manifest)

    def requests(self) -> list[str]:
        return [f"{r.method} {r.path.rpartition('/')[2]}" for r in self.registry.manifest_requests()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Registry(tmp_path / "registry") as registry:
        made = Bench(registry, tmp_path)
        yield made
        made.client.close()


def test_an_unknown_tag_takes_one_request_and_is_stored(bench: Bench) -> None:
    assert bench.resolve() == bench.pushed.digest
    assert bench.requests() == ["GET v1"]
    assert bench.store.read_document(Digest.parse(bench.pushed.digest)) == bench.pushed.document


def test_a_known_tag_is_not_resolved_again_but_access_is_proved(bench: Bench) -> None:
    bench.resolve()
    bench.registry.forget()
    bench.pusher.artifact("llm/tiny", "v1", push.oras(bench.files))
    bench.registry.forget()
    assert bench.resolve() == bench.pushed.digest
    assert bench.requests() == ["HEAD v1", f"HEAD {bench.pushed.digest}"]  # the tag means something else by now


def test_without_verification_a_known_reference_needs_no_network(bench: Bench) -> None:
    bench.resolve()
    bench.registry.stop()
    trusting = Resolver(bench.store, bench.client, Auth(verification="never"))
    reference = Reference.parse(bench.pushed.reference)
    assert str(trusting.resolve(reference, "IfNotPresent", Credential.anonymous()).manifest) == bench.pushed.digest


def test_always_asks_for_the_tag_and_sees_that_it_moved(bench: Bench) -> None:
    bench.resolve()
    assert bench.resolve(policy="Always") == bench.pushed.digest
    newer = bench.pusher.artifact("llm/tiny", "v1", push.oras(bench.files))
    assert bench.resolve(policy="Always") == newer.digest
    assert bench.resolve() == newer.digest


def test_never_refuses_what_is_not_here_and_says_what_to_do(bench: Bench) -> None:
    with pytest.raises(Precondition, match="modelmount pull"):
        bench.resolve(policy="Never")
    assert bench.requests() == ["HEAD v1"]  # who may not read it isn't told whether it is here
    bench.resolve()
    assert bench.resolve(policy="Never") == bench.pushed.digest


def test_never_takes_a_digest_whose_manifest_is_here(bench: Bench) -> None:
    bench.resolve()
    bench.registry.forget()
    assert bench.resolve(bench.pushed.pinned, policy="Never") == bench.pushed.digest
    assert bench.requests() == [f"HEAD {bench.pushed.digest}"]
    other = f"{bench.registry.host}/other/tiny@{bench.pushed.digest}"
    with pytest.raises(NotFound, match="not found or no access"):
        bench.resolve(other, policy="Never")


def test_a_digest_needs_no_tag_and_is_checked(bench: Bench) -> None:
    assert bench.resolve(bench.pushed.pinned) == bench.pushed.digest
    assert bench.requests() == [f"GET {bench.pushed.digest}"]


def test_with_tag_and_digest_the_tag_is_never_looked_at(bench: Bench) -> None:
    assert bench.resolve(f"{bench.registry.host}/llm/tiny:gone@{bench.pushed.digest}") == bench.pushed.digest
    assert bench.requests() == [f"GET {bench.pushed.digest}"]


def test_another_repository_is_asked_itself_for_the_same_digest(bench: Bench) -> None:
    bench.resolve()
    other = bench.pusher.artifact("other/tiny", "v1", push.modelpack(bench.files))
    assert other.digest == bench.pushed.digest
    bench.registry.forget()
    assert bench.resolve(other.pinned) == bench.pushed.digest
    assert bench.requests() == [f"GET {other.digest}"]


def test_a_missing_tag_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFound, match="llm/tiny"):
        bench.resolve(f"{bench.registry.host}/llm/tiny:v9")


def test_a_registry_that_is_down_is_unavailable_for_a_tag_that_has_to_be_asked_for(bench: Bench) -> None:
    bench.resolve()
    bench.registry.stop()
    with pytest.raises(Unavailable):
        bench.resolve(policy="Always")
    assert bench.resolve() == bench.pushed.digest  # access was proved a moment ago


def test_an_index_is_followed_to_a_manifest(bench: Bench) -> None:
    index = bench.pusher.index("llm/tiny", "all", [(bench.pushed, {})])
    assert bench.resolve(index.reference) == bench.pushed.digest
    bench.registry.forget()
    assert bench.resolve(index.reference) == bench.pushed.digest
    assert bench.requests() == ["HEAD all"]


def test_each_choice_of_an_index_is_remembered_by_itself(bench: Bench) -> None:
    other = bench.pusher.artifact("llm/tiny", "v2", push.oras(bench.files))
    entries = [(bench.pushed, {"annotations": {"q": "8"}}), (other, {"annotations": {"q": "4"}})]
    index = bench.pusher.index("llm/tiny", "all", entries)
    with pytest.raises(BadArtifact, match=r"with 'q=8'.*`select`"):
        bench.resolve(index.reference)
    for _ in range(2):
        assert bench.resolve(index.reference, choice=Choice(select=(("q", "8"),))) == bench.pushed.digest
        assert bench.resolve(index.reference, choice=Choice(select=(("q", "4"),))) == other.digest
    assert bench.requests()[-2:] == ["HEAD all"] * 2


def test_indexes_nested_too_deeply_are_refused(bench: Bench) -> None:
    inner = bench.pushed
    for depth in range(5):
        document = bench.pusher.index(
            "llm/tiny", f"depth-{depth}", [(inner, {"mediaType": push.INDEX} if depth else {})]
        )
        inner = document
    with pytest.raises(BadArtifact, match="nested"):
        bench.resolve(inner.reference)


def test_a_torn_record_of_a_reference_is_resolved_again(bench: Bench) -> None:
    bench.resolve()
    for record in (bench.store.root / "refs").iterdir():
        record.write_bytes(record.read_bytes()[:10])
    bench.registry.forget()
    assert bench.resolve() == bench.pushed.digest
    assert bench.requests() == ["GET v1"]
