"""Mirrors out of containerd's own files, between real registries: who serves what is read from their logs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from modelmount import config, wiring
from modelmount.content import asides
from modelmount.errors import Forbidden, Unauthenticated
from modelmount.formats.selection import EVERYTHING
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Reference
from modelmount.pull.job import Waiter
from modelmount.registry.credentials import Credential
from modelmount.sources.registry import RegistrySource
from tests.e2e.conftest import contents, random_bytes
from tests.fakes import push
from tests.fakes.proxy import Proxy
from tests.fakes.registry import Registry
from tests.fakes.wire import Answer, Asked, WireServer, challenge
from tests.faults.scene import wait_for

pytestmark = pytest.mark.registry

SECONDS = 60.0
WEIGHTS_BYTES = 6 << 20
CUT_BYTES = 2 << 20
SLACK_BYTES = 256 << 10
"""Headers, and what a broken connection had on its way."""


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "origin") as started:
        yield started


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "mirror") as started:
        yield started


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path / "model", 1)


def write_files(directory: Path, seed: int) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(f'{{"seed": {seed}}}\n')
    (directory / "model.safetensors").write_bytes(random_bytes(WEIGHTS_BYTES, seed))
    return directory


class Site:
    """A node's settings, and the hosts.toml beside them."""

    def __init__(self, directory: Path, origin: Registry) -> None:
        self.directory, self.origin = directory, origin
        self.node: wiring.Node | None = None
        self.docker_config: str | None = None
        self.connections: int | None = None
        self.registries: dict[str, dict[str, object]] | None = None

    def mirrored(self, *urls: str, header: Mapping[str, str] | None = None) -> None:
        """Have the registry mirrored at `urls`, in this order."""
        there = self.directory / "certs.d" / self.origin.host
        there.mkdir(parents=True)
        tables = [f'[host."{url}"]\n' for url in urls]
        if header:
            tables.append(f'[host."{urls[0]}".header]\n' + "".join(f'{k} = "{v}"\n' for k, v in header.items()))
        (there / "hosts.toml").write_text(f'server = "{self.origin.url}"\n' + "".join(tables))

    def pull(self, pushed: push.Pushed, username: str = "", password: str = "") -> dict[str, bytes]:
        """Prove, pull, and read what a pod would see."""
        if self.node is None:
            self.node = wiring.build(
                config.load(
                    None,
                    {},
                    {
                        "root": str(self.directory / "store"),
                        "hosts_dir": str(self.directory / "certs.d"),
                        "limits.free_bytes": 0,
                        "auth.docker_config": self.docker_config,
                        "pull.connections": self.connections,
                        "registries": self.registries,
                    },
                )
            )
        reference = Reference.parse(pushed.reference)
        secrets = {"username": username, "password": password} if username else {}
        credential = self.node.credentials.find(reference.repository, secrets)
        model = self.node.resolver.resolve(reference, "IfNotPresent", credential)
        tree = self.node.puller.ensure(model, EVERYTHING, credential).wait(Waiter(), SECONDS)
        assert tree is not None
        return contents(tree.root)


@pytest.fixture
def site(tmp_path: Path, origin: Registry) -> Iterator[Site]:
    made = Site(tmp_path, origin)
    yield made
    if made.node is not None:
        made.node.close()


def put(files: Path, *registries: Registry, name: str = "llm/tiny") -> push.Pushed:
    """Push to all; what the first one calls it."""
    pushed = [
        push.Pusher(each.host, each.connection).artifact(name, "v1", push.modelpack(files)) for each in registries
    ]
    for each in registries:
        each.forget()
    return pushed[0]


def layers(pushed: push.Pushed) -> list[str]:
    return [layer["digest"] for layer in json.loads(pushed.document)["layers"]]


def weights(pushed: push.Pushed) -> str:
    return str(max(json.loads(pushed.document)["layers"], key=lambda layer: layer["size"])["digest"])


def served(registry: Registry, digest: str) -> int:
    return sum(r.size for r in registry.requests() if r.digest == digest and r.status in {200, 206})


def test_a_mirror_serves_the_blobs_and_the_registry_is_asked_for_the_proof(
    site: Site, origin: Registry, mirror: Registry, files: Path
) -> None:
    pushed = put(files, origin, mirror)
    site.mirrored(mirror.url)
    assert site.pull(pushed) == contents(files)
    assert origin.blob_gets() == {}
    assert set(mirror.blob_gets()) >= set(layers(pushed))
    assert max(mirror.blob_gets().values()) == 1
    assert mirror.manifest_requests() == []
    assert {r.query for r in mirror.requests() if r.digest} == {f"ns={origin.host.replace(':', '%3A')}"}


def test_a_dead_mirror_is_asked_by_the_first_model_and_not_by_the_second(
    site: Site, origin: Registry, mirror: Registry, files: Path, tmp_path: Path
) -> None:
    pushed = put(files, origin, mirror)
    second = put(write_files(tmp_path / "second", 2), origin, mirror, name="llm/second")
    with WireServer() as dead:
        for digest in layers(pushed) + layers(second):
            for name in ("llm/tiny", "llm/second"):
                dead.on(f"/v2/{name}/blobs/{digest}", Answer(hang_up=True))
        site.mirrored(dead.url, mirror.url)
        assert site.pull(pushed) == contents(files)
        asked = len(dead.asked())
        # Those that were under way together, once more each on a connection that may have been a stale one.
        assert 1 <= asked <= 2 * len(layers(pushed))
        assert site.pull(second) == contents(tmp_path / "second")
        assert len(dead.asked()) == asked
        (note,) = (site.directory / "store" / asides.ROOM).glob("*.json")
        assert json.loads(note.read_bytes())["mirror"] == dead.host
    assert origin.blob_gets() == {}
    assert set(mirror.blob_gets()) >= {*layers(pushed), *layers(second)}


def test_a_mirror_that_dies_in_the_middle_is_gone_on_from_byte_by_byte(
    site: Site, origin: Registry, mirror: Registry, files: Path
) -> None:
    pushed = put(files, origin, mirror)
    site.connections = 1
    with Proxy(mirror.port, cut_after=CUT_BYTES) as dying:
        site.mirrored(f"http://{dying.host}")
        assert site.pull(pushed) == contents(files)
    rest = served(origin, weights(pushed))
    assert WEIGHTS_BYTES - CUT_BYTES <= rest <= WEIGHTS_BYTES - CUT_BYTES + SLACK_BYTES
    assert [r.status for r in origin.requests() if r.digest == weights(pushed)] == [206]


def test_wrong_bytes_of_a_mirror_are_had_from_the_registry_and_not_asked_for_again(
    site: Site, origin: Registry, mirror: Registry, files: Path
) -> None:
    pushed = put(files, origin, mirror)
    mirror.blob_file(weights(pushed)).write_bytes(random_bytes(WEIGHTS_BYTES, 7))
    site.mirrored(mirror.url)
    assert site.pull(pushed) == contents(files)
    assert mirror.blob_gets()[weights(pushed)] == 1
    assert origin.blob_gets()[weights(pushed)] == 1
    assert served(origin, weights(pushed)) == WEIGHTS_BYTES
    (bar,) = (site.directory / "store/backoff").glob("*.json")
    assert weights(pushed).partition(":")[2] in bar.name
    assert mirror.host in bar.name


def test_what_a_mirror_does_not_have_comes_from_the_registry_and_the_rest_from_it(
    site: Site, origin: Registry, mirror: Registry, files: Path
) -> None:
    pushed = put(files, origin, mirror)
    mirror.blob_file(weights(pushed)).unlink()
    site.mirrored(mirror.url)
    assert site.pull(pushed) == contents(files)
    others = set(layers(pushed)) - {weights(pushed)}
    assert set(origin.blob_gets()) == {weights(pushed)}
    assert set(mirror.blob_gets()) >= others
    assert [r.status for r in mirror.requests() if r.digest == weights(pushed)] == [404]


def test_a_mirror_has_as_many_connections_as_its_host_may_have(
    site: Site, origin: Registry, mirror: Registry, files: Path
) -> None:
    pushed = put(files, origin, mirror)
    site.mirrored(mirror.url)
    site.registries = {mirror.host: {"plain_http": True, "connections": 1}}
    assert site.pull(pushed) == contents(files)
    assert mirror.blob_gets().total() > 0
    assert site.node is not None
    origin.forget()
    mirror.forget()
    blob = Descriptor("application/octet-stream", Digest.parse(weights(pushed)), WEIGHTS_BYTES)
    repository = Reference.parse(pushed.reference).repository
    own = RegistrySource(site.node.client, repository, Credential.anonymous)
    source, view = site.node.mirrors.before(own, repository), memoryview(bytearray(4096))
    with source.open(blob, 0) as first, source.open(blob, 0) as second:
        assert first.readinto(view)
        assert second.readinto(view)
    with source.open(blob, 0) as third:
        assert third.readinto(view)
    wait_for(lambda: (mirror.blob_gets().total(), origin.blob_gets().total()) == (2, 1), "both logs to have them")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "guarded", users={"alice": "her-password"}) as started:
        yield started


def test_the_registrys_credentials_stay_there_and_a_mirror_gets_its_own(
    tmp_path: Path, guarded: Registry, files: Path
) -> None:
    alice = push.basic("alice", "her-password")
    pusher = push.Pusher(guarded.host, guarded.connection, authorization=alice)
    pushed = pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    guarded.forget()
    made = Site(tmp_path, guarded)
    with WireServer() as mirror:
        own = "Basic " + base64.b64encode(b"node:mirror-password").decode()
        for digest in layers(pushed):
            mirror.on(f"/v2/llm/tiny/blobs/{digest}", known_only(own, guarded.blob_file(digest).read_bytes()))
        made.docker_config = str(tmp_path / "docker.json")
        Path(made.docker_config).write_text(json.dumps({"auths": {mirror.host: {"auth": own.partition(" ")[2]}}}))
        made.mirrored(mirror.url, header={"X-Dragonfly-Registry": guarded.url})
        try:
            with pytest.raises(Unauthenticated):
                made.pull(pushed)
            with pytest.raises(Forbidden):
                made.pull(pushed, "alice", "a-guess")
            assert mirror.asked() == []
            assert made.pull(pushed, "alice", "her-password") == contents(files)
        finally:
            if made.node is not None:
                made.node.close()
        assert {each.headers.get("authorization") for each in mirror.asked()} <= {None, own}
        assert {each.headers["x-dragonfly-registry"] for each in mirror.asked()} == {guarded.url}
    assert guarded.blob_gets() == {}


def known_only(own: str, data: bytes) -> Callable[[Asked], Answer]:
    """A blob for those who show `own`."""

    def answer(asked: Asked) -> Answer:
        return Answer(body=data) if asked.headers.get("authorization") == own else challenge('Basic realm="mirror"')

    return answer
