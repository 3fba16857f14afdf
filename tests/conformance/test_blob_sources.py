"""Every source of blobs, against the one suite."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.config import Registry, Settings
from modelmount.errors import Unavailable
from modelmount.oci.reference import Repository
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential
from modelmount.sources.base import BlobSource
from modelmount.sources.health import Health
from modelmount.sources.mirrored import MirroredSource
from modelmount.sources.ocilayout import Layout, LayoutSource
from modelmount.sources.registry import RegistrySource
from modelmount.sources.throttled import Bandwidth, ThrottledSource
from tests.conformance.blob_source import BlobSourceConformance, MakeSource, descriptor
from tests.fakes import push, registry
from tests.fakes.source import Fault, MemorySource
from tests.fakes.wire import Answer, WireServer, blob, redirect


def source_of(client: Client, host: str) -> BlobSource:
    return RegistrySource(client, Repository(host, "llm/tiny"), Credential.anonymous)


@pytest.fixture
def client(host: str) -> Iterator[Client]:
    made = Client(Settings(registries={host: Registry(plain_http=True)}))
    yield made
    made.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    with registry.Registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.mark.registry
class TestRegistry(BlobSourceConformance):
    """A real registry."""

    @pytest.fixture
    def host(self, real: registry.Registry) -> str:
        return real.host

    @pytest.fixture
    def make(self, real: registry.Registry, client: Client) -> MakeSource:
        def put(data: bytes) -> BlobSource:
            push.Pusher(real.host, real.connection).blob("llm/tiny", data)
            return source_of(client, real.host)

        return put


class _Scripted(BlobSourceConformance):
    """A server that serves blobs in some peculiar, legitimate way."""

    @pytest.fixture
    def server(self) -> Iterator[WireServer]:
        with WireServer() as started:
            yield started

    @pytest.fixture
    def host(self, server: WireServer) -> str:
        return server.host

    @pytest.fixture
    def make(self, server: WireServer, client: Client) -> MakeSource:
        def put(data: bytes) -> BlobSource:
            self.serve(server, f"/v2/llm/tiny/blobs/{descriptor(data).digest}", data)
            return source_of(client, server.host)

        return put

    def serve(self, server: WireServer, path: str, data: bytes) -> None:
        raise NotImplementedError


class TestRegistryWithoutRanges(_Scripted):
    def serve(self, server: WireServer, path: str, data: bytes) -> None:
        server.on(path, Answer(body=data))


class TestRegistryWithWrongRanges(_Scripted):
    def serve(self, server: WireServer, path: str, data: bytes) -> None:
        server.on(path, lambda asked: Answer(416) if "range" in asked.headers else Answer(body=data))


class TestRegistryThatSendsChunks(_Scripted):
    def serve(self, server: WireServer, path: str, data: bytes) -> None:
        server.on(path, Answer(body=data, framing="chunked"))


class TestRegistryThatClosesConnections(_Scripted):
    def serve(self, server: WireServer, path: str, data: bytes) -> None:
        server.on(path, Answer(body=data, framing="close"))


class TestRegistryThatRedirects(_Scripted):
    def serve(self, server: WireServer, path: str, data: bytes) -> None:
        server.on(path, redirect("/storage"))
        server.on("/storage", blob(data))


class _Mirrored(BlobSourceConformance):
    """A mirror and a registry, one of which has the blob."""

    def mirrored(self, mirror: BlobSource, data: bytes) -> BlobSource:
        origin = MemorySource(data)
        return MirroredSource(origin, [mirror], Health(), lambda digest, name: _NoBar())


class _NoBar:
    def check(self) -> None:
        """It never stands."""

    def punish(self, reason: str) -> None:
        """It needn't: nothing is verified here."""


class TestMirrored(_Mirrored):
    @pytest.fixture
    def make(self) -> MakeSource:
        return lambda data: self.mirrored(MemorySource(data, name="mirror"), data)


class TestMirrorWithoutTheBlob(_Mirrored):
    @pytest.fixture
    def make(self) -> MakeSource:
        return lambda data: self.mirrored(MemorySource(name="mirror"), data)


class TestMirrorThatIsDown(_Mirrored):
    @pytest.fixture
    def make(self) -> MakeSource:
        def down(data: bytes) -> BlobSource:
            mirror = MemorySource(data, name="mirror")
            mirror.faults.extend(Fault(error=Unavailable("mirror refused the connection")) for _ in range(100))
            return self.mirrored(mirror, data)

        return down


def layout(data: bytes) -> dict[str, bytes]:
    """The files of an image layout with this blob."""
    digest = descriptor(data).digest
    index = {"schemaVersion": 2, "manifests": [{"mediaType": "x/y", "digest": str(digest), "size": len(data)}]}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}
    return {**files, f"blobs/sha256/{digest.hex}": data}


class TestLayoutInADirectory(BlobSourceConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeSource:
        def put(data: bytes) -> BlobSource:
            for name, content in layout(data).items():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_bytes(content)
            return LayoutSource(Layout(tmp_path))

        return put


class TestLayoutInATar(BlobSourceConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeSource:
        def put(data: bytes) -> BlobSource:
            with tarfile.open(tmp_path / "layout.tar", "w") as tar:
                for name, content in layout(data).items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            return LayoutSource(Layout(tmp_path / "layout.tar"))

        return put


class TestThrottled(BlobSourceConformance):
    @pytest.fixture
    def make(self) -> MakeSource:
        return lambda data: ThrottledSource(MemorySource(data), Bandwidth(10**9))


class TestFakeSource(BlobSourceConformance):
    """What tests of pulls use in a registry's place behaves like a source, too."""

    @pytest.fixture
    def make(self) -> MakeSource:
        return MemorySource
