"""What the registry as a source adds to the client; the rest is in the conformance suite."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from modelmount.config import Registry, Settings
from modelmount.errors import Forbidden, IntegrityError
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential
from modelmount.sources.registry import RegistrySource
from tests.fakes.wire import Answer, WireServer, blob, challenge
from tests.unit.transport.asking import drain

DATA = bytes(range(256)) * 100
LAYER = Descriptor("application/octet-stream", Digest.of(DATA), len(DATA))
PATH = f"/v2/llm/tiny/blobs/{LAYER.digest}"


@pytest.fixture
def server() -> Iterator[WireServer]:
    with WireServer() as started:
        yield started


@pytest.fixture
def client(server: WireServer) -> Iterator[Client]:
    made = Client(Settings(registries={server.host: Registry(plain_http=True)}))
    yield made
    made.close()


def test_h18_each_open_uses_the_newest_credential(server: WireServer, client: Client) -> None:
    credentials = [Credential(username="alice", password="old"), Credential(username="alice", password="new")]
    source = RegistrySource(client, Repository(server.host, "llm/tiny"), lambda: credentials[0])
    good = {"Basic YWxpY2U6b2xk"}
    server.on(
        PATH,
        lambda asked: blob(DATA)(asked) if asked.headers.get("authorization") in good else challenge('Basic realm="x"'),
    )
    assert drain(client.blob(Repository(server.host, "llm/tiny"), LAYER.digest, 0, credentials[0])) == DATA
    good.clear()
    good.add("Basic YWxpY2U6bmV3")
    with pytest.raises(Forbidden):
        source.open(LAYER, 0)
    del credentials[0]
    with source.open(LAYER, 10) as opened:
        assert opened.offset == 10


@pytest.mark.parametrize("offset", [0, 10])
@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_a_size_that_the_manifest_and_the_registry_disagree_about_is_a_wrong_blob(
    server: WireServer, client: Client, size: int, offset: int
) -> None:
    server.on(PATH, blob(DATA))
    source = RegistrySource(client, Repository(server.host, "llm/tiny"), Credential.anonymous)
    with pytest.raises(IntegrityError, match=f"{LAYER.digest} of {server.host}/llm/tiny has {len(DATA)} bytes") as told:
        source.open(replace(LAYER, size=size), offset)
    assert f"the manifest says {size}" in told.value.message


def test_a_size_that_nobody_declares_is_left_to_the_bytes(server: WireServer, client: Client) -> None:
    server.on(PATH, Answer(body=DATA, framing="chunked"))
    source = RegistrySource(client, Repository(server.host, "llm/tiny"), Credential.anonymous)
    with source.open(replace(LAYER, size=5), 0) as opened:
        assert opened.readinto(memoryview(bytearray(100))) == 100
