"""What tests of this room ask for."""

from typing import Any

from modelmount.config import Pull, Registry, Settings
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import Credential
from tests.fakes.wire import WireServer

ANONYMOUS = Credential.anonymous()
ALICE = Credential(username="alice", password="wonder:land é")
MANIFEST = b'{"schemaVersion": 2}'
MANIFEST_DIGEST = Digest.of(MANIFEST)
BLOB = bytes(range(256)) * 1000
BLOB_DIGEST = Digest.of(BLOB)

TAGGED = "/v2/llm/tiny/manifests/v1"
PINNED = f"/v2/llm/tiny/manifests/{MANIFEST_DIGEST}"
BLOB_PATH = f"/v2/llm/tiny/blobs/{BLOB_DIGEST}"


def settings_for(*servers: WireServer, pull: Pull | None = None, **registry: Any) -> Settings:
    """The admin lists these servers, http ones with plain_http."""
    hosts = {each.host: Registry(plain_http=each.url.startswith("http:"), **registry) for each in servers}
    return Settings(registries=hosts, pull=pull or Pull(read_timeout_seconds=5, document_timeout_seconds=10))


def tiny(server: WireServer) -> Repository:
    return Repository(server.host, "llm/tiny")
