import pytest

from modelmount.errors import InvalidRequest
from modelmount.registry.credentials import Credential, secret


@pytest.mark.parametrize(
    ("secrets", "credential"),
    [
        ({}, None),
        ({"unrelated": "x", "csi.storage.k8s.io/serviceAccount.tokens": "{}"}, None),
        ({"username": "", "password": "", "token": ""}, None),
        ({"username": "alice", "password": "p:w"}, Credential(username="alice", password="p:w")),
        ({"username": "alice\n", "password": "pw\r\n"}, Credential(username="alice", password="pw")),
        ({"username": "alice", "password": " pw "}, Credential(username="alice", password=" pw ")),
        ({"username": "robot$llm+pull", "password": "é"}, Credential(username="robot$llm+pull", password="é")),
        ({"token": "abc.def\n"}, Credential(registry_token="abc.def")),
        ({"username": "alice", "password": "pw", "token": "t"}, Credential(username="alice", password="pw")),
    ],
)
def test_plain_keys_make_a_credential(secrets: dict[str, str], credential: Credential | None) -> None:
    assert secret.find(secrets) == credential


@pytest.mark.parametrize(
    ("secrets", "key"),
    [
        ({"username": "hunter2"}, "password"),
        ({"password": "hunter2"}, "username"),
        ({"username": "hun:ter2", "password": "hunter2"}, "username"),
        ({"token": "hunter2\nX-Injected: 1"}, "token"),
        ({"token": "hunter2 hunter2"}, "token"),
        ({"token": "hünter2"}, "token"),
    ],
)
def test_what_is_malformed_is_named_by_its_key_and_never_shown(secrets: dict[str, str], key: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^the Secret.* {key}") as refused:
        secret.find(secrets)
    assert "hunter2" not in str(refused.value)
    assert "hun:ter2" not in str(refused.value)
