import json
from pathlib import Path

import msgspec
import pytest

from modelmount.config import Auth, Settings
from modelmount.errors import InvalidRequest, Unavailable
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import Credential, Credentials

REPOSITORY = Repository("harbor.example.com", "llm/x")


def config(username: str, host: str = "harbor.example.com") -> str:
    return json.dumps({"auths": {host: {"username": username, "password": "pw"}}})


def of(username: str) -> Credential:
    return Credential(username=username, password="pw")


@pytest.fixture
def node(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(config("node"))
    return path


def credentials(node: Path | None) -> Credentials:
    return Credentials(Settings(auth=Auth(docker_config=None if node is None else str(node))))


def test_a_volumes_own_secret_comes_before_the_nodes_configuration_and_that_before_none(node: Path) -> None:
    everything = {
        ".dockerconfigjson": config("new"),
        ".dockercfg": json.dumps({"harbor.example.com": {"username": "old", "password": "pw"}}),
        "username": "plain",
        "password": "pw",
        "token": "token",
    }
    found = []
    for key in (None, ".dockerconfigjson", ".dockercfg", "username", "token"):
        everything.pop(key or "", None)
        if key == "username":
            del everything["password"]
        found.append(credentials(node).find(REPOSITORY, everything))
    assert found == [of("new"), of("old"), of("plain"), Credential(registry_token="token"), of("node")]
    assert credentials(None).find(REPOSITORY, {}) == Credential.anonymous()


def test_a_secret_for_another_registry_is_as_good_as_none(node: Path) -> None:
    other = {".dockerconfigjson": config("other", "other.example.com")}
    assert credentials(node).find(REPOSITORY, other) == of("node")
    assert credentials(None).find(REPOSITORY, other).is_anonymous
    assert credentials(node).find(REPOSITORY, {**other, "username": "plain", "password": "pw"}) == of("plain")


@pytest.mark.parametrize(
    ("said", "secrets", "is_shared"),
    [
        ("deny_if_pod_has_secret", {}, True),
        ("deny_if_pod_has_secret", {"csi.storage.k8s.io/unknown": "x"}, True),
        ("deny_if_pod_has_secret", {".dockerconfigjson": '{"auths": {}}'}, False),
        ("deny_if_pod_has_secret", {".dockercfg": "{}"}, False),
        ("share", {".dockerconfigjson": '{"auths": {}}'}, True),
        ("off", {}, False),
    ],
)
def test_the_nodes_credentials_are_for_the_pods_that_the_admin_says(
    node: Path, said: str, secrets: dict[str, str], is_shared: bool
) -> None:
    settings = msgspec.convert({"auth": {"docker_config": str(node), "node_credential": said}}, Settings)
    found = Credentials(settings).find(REPOSITORY, secrets, of_pod=True)
    assert found.is_anonymous is not is_shared
    assert not Credentials(settings).find(REPOSITORY, secrets).is_anonymous  # the command line's, and for mirrors


def test_a_node_configuration_that_was_rotated_counts_at_once(node: Path) -> None:
    found = credentials(node)
    assert found.find(REPOSITORY, {}) == of("node")
    node.write_text(config("rotated"))
    assert found.find(REPOSITORY, {}) == of("rotated")


@pytest.mark.parametrize(
    "content", [None, b"hunter2", b"\xff\xfehunter2", b'{"auths": {"harbor.example.com": {"auth": "hunter2"}}}']
)
def test_a_node_configuration_that_cannot_be_read_is_the_admins_to_put_right(node: Path, content: bytes | None) -> None:
    if content is None:
        node.unlink()
    else:
        node.write_bytes(content)
    with pytest.raises(
        Unavailable, match=f"the node's docker configuration {node}.*the admin has to put it right"
    ) as told:
        credentials(node).find(REPOSITORY, {})
    assert "hunter2" not in str(told.value)
    assert credentials(node).find(REPOSITORY, {".dockerconfigjson": config("own")}) == of("own")


@pytest.mark.parametrize("key", [".dockerconfigjson", ".dockercfg"])
def test_a_malformed_secret_is_named_by_its_key(key: str, node: Path) -> None:
    with pytest.raises(InvalidRequest, match=rf"^the Secret's key \{key} isn't the JSON"):
        credentials(node).find(REPOSITORY, {key: "hunter2"})


def test_no_secret_shows_in_a_credential() -> None:
    for credential, kind in (
        (Credential(username="alice", password="hunter2"), "password"),
        (Credential(username="alice", identity_token="hunter2"), "token"),
        (Credential(registry_token="hunter2"), "token"),
        (Credential.anonymous(), "anonymous"),
    ):
        assert repr(credential) == str(credential) == f"{credential}" == f"<Credential: {kind}>"


def test_equal_credentials_are_one_key() -> None:
    assert len({of("a"), of("a"), of("b"), Credential.anonymous(), Credential()}) == 3
