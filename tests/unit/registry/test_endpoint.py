import pytest

from modelmount.config import Registry, Settings
from modelmount.errors import InvalidRequest
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.registry import endpoint

DIGEST = Digest("sha256", "a" * 64)
SETTINGS = Settings(registries={"plain.example.com:5000": Registry(plain_http=True)})


@pytest.mark.parametrize(
    ("registry", "base"),
    [
        ("harbor.example.com", "https://harbor.example.com"),
        ("harbor.example.com:8443", "https://harbor.example.com:8443"),
        ("plain.example.com:5000", "http://plain.example.com:5000"),
        ("[::1]:5000", "https://[::1]:5000"),
        ("docker.io", "https://registry-1.docker.io"),
    ],
)
def test_a_repository_is_asked_where_its_registry_is(registry: str, base: str) -> None:
    repository = Repository(registry, "llm/llama3-70b")
    assert str(endpoint.manifest(SETTINGS, repository, "v1.0_x")) == f"{base}/v2/llm/llama3-70b/manifests/v1.0_x"
    assert str(endpoint.manifest(SETTINGS, repository, DIGEST)) == f"{base}/v2/llm/llama3-70b/manifests/{DIGEST}"
    assert str(endpoint.blob(SETTINGS, repository, DIGEST)) == f"{base}/v2/llm/llama3-70b/blobs/{DIGEST}"


@pytest.mark.parametrize(
    "server", ["https://mirror.example.com/v2/hub", "http://10.0.0.1:5000/v2", "https://bare.example.com"]
)
def test_a_registry_is_asked_where_the_admin_says(server: str) -> None:
    settings = Settings(registries={"docker.io": Registry(server=server)})
    blob = endpoint.blob(settings, Repository("docker.io", "library/tiny"), DIGEST)
    assert str(blob) == f"{server}/library/tiny/blobs/{DIGEST}"


def test_a_host_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="can't be a registry's host"):
        endpoint.home(SETTINGS, f"{'a' * 64}.example.com")
