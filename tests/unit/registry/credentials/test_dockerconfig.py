import base64
import json
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.errors import InvalidRequest
from modelmount.oci.reference import Reference, Repository
from modelmount.registry.credentials import Credential, dockerconfig
from modelmount.registry.credentials.dockerconfig import MAX_ENTRIES

WHAT = "the Secret's key .dockerconfigjson"


def auth(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def repository(reference: str) -> Repository:
    return Reference.parse(reference).repository


def find(auths: Any, reference: str) -> Credential | None:
    return dockerconfig.find(json.dumps({"auths": auths}), repository(reference), WHAT)


def user(auths: dict[str, Any], reference: str) -> str | None:
    """Whose entry is found, where every entry's user is its key."""
    found = find({key: auth(key.replace(":", ";"), "p") for key in auths}, reference)
    return None if found is None else found.username.replace(";", ":")


@pytest.mark.parametrize(
    ("entry", "reference"),
    [
        ("harbor.example.com", "harbor.example.com/llm/x"),
        ("HARBOR.example.com", "harbor.example.com/llm/x"),
        ("https://harbor.example.com", "harbor.example.com/llm/x"),
        ("http://harbor.example.com/", "harbor.example.com/llm/x"),
        ("https://harbor.example.com/v2/", "harbor.example.com/llm/x"),
        ("https://harbor.example.com/v1", "harbor.example.com/llm/x"),
        ("harbor.example.com:8443", "harbor.example.com:8443/llm/x"),
        ("harbor.example.com/llm", "harbor.example.com/llm/x"),
        ("harbor.example.com/llm/", "harbor.example.com/llm/x"),
        ("harbor.example.com/llm/x", "harbor.example.com/llm/x"),
        ("harbor.example.com/v2/llm", "harbor.example.com/llm/x"),
        ("*.example.com", "harbor.example.com/llm/x"),
        ("harbor.*.com", "harbor.example.com/llm/x"),
        ("*.*.com", "harbor.example.com/llm/x"),
        ("h?rb[aeiou]r.example.com", "harbor.example.com/llm/x"),
        ("*.example.com:8443/llm", "harbor.example.com:8443/llm/x"),
        ("[::1]:5000", "[::1]:5000/llm/x"),
        ("https://index.docker.io/v1/", "docker.io/ai/smollm2"),
        ("index.docker.io", "docker.io/ai/smollm2"),
        ("docker.io", "docker.io/ai/smollm2"),
        ("registry-1.docker.io", "docker.io/ai/smollm2"),
        ("https://index.docker.io/v1/", "index.docker.io/ai/smollm2"),
        ("docker.io/ai", "docker.io/ai/smollm2"),
    ],
)
def test_an_entry_is_for_these(entry: str, reference: str) -> None:
    assert user({entry: None}, reference) == entry


@pytest.mark.parametrize(
    ("entry", "reference"),
    [
        ("harbor.example.com", "other.example.com/llm/x"),
        ("example.com", "harbor.example.com/llm/x"),
        ("harbor.example.com", "harbor.example.com.evil.net/llm/x"),
        ("harbor.example.com", "harbor.example.com:8443/llm/x"),
        ("harbor.example.com:8443", "harbor.example.com/llm/x"),
        ("harbor.example.com:443", "harbor.example.com:8443/llm/x"),
        ("*.com", "harbor.example.com/llm/x"),
        ("*", "harbor.example.com/llm/x"),
        ("*.example.com", "a.harbor.example.com/llm/x"),
        ("*.example.com", "harbor.example.com:8443/llm/x"),
        ("harbor.example.com/llm", "harbor.example.com/llm-evil/x"),
        ("harbor.example.com/llm", "harbor.example.com/other/llm/x"),
        ("harbor.example.com/llm/x/y", "harbor.example.com/llm/x"),
        ("harbor.example.com/*", "harbor.example.com/llm/x"),
        ("https://index.docker.io/v1/", "harbor.example.com/llm/x"),
        ("docker.io/other", "docker.io/ai/smollm2"),
        ("", "harbor.example.com/llm/x"),
    ],
)
def test_an_entry_is_not_for_those(entry: str, reference: str) -> None:
    assert user({entry: None}, reference) is None


def test_the_longest_path_wins_and_a_name_wins_over_a_glob() -> None:
    entries = ["*.example.com", "harbor.example.com", "harbor.example.com/llm", "*.example.com/llm/team", "other.com"]
    auths = dict.fromkeys(entries)
    assert user(auths, "harbor.example.com/llm/team/x") == "*.example.com/llm/team"
    assert user(auths, "harbor.example.com/llm/x") == "harbor.example.com/llm"
    assert user(auths, "harbor.example.com/x") == "harbor.example.com"
    assert user(auths, "b.example.com/x") == "*.example.com"
    assert user(dict.fromkeys(reversed(entries)), "harbor.example.com/x") == "harbor.example.com"


@pytest.mark.parametrize(
    ("entry", "credential"),
    [
        (auth("alice", "p:w"), Credential(username="alice", password="p:w")),
        (auth("robot$llm+pull", "é"), Credential(username="robot$llm+pull", password="é")),
        ({"username": "alice", "password": "pw"}, Credential(username="alice", password="pw")),
        ({"username": "bob", "password": "x", **auth("alice", "pw")}, Credential(username="alice", password="pw")),
        ({"auth": base64.b64encode(b"alice:pw\0\0").decode()}, Credential(username="alice", password="pw")),
        ({"auth": base64.b64encode(b"alice:p").decode().rstrip("=")}, Credential(username="alice", password="p")),
        ({"auth": base64.encodebytes(b"alice:" + b"p" * 99).decode()}, Credential(username="alice", password="p" * 99)),
        ({"identitytoken": "abc", **auth("uuid", "")}, Credential(username="uuid", identity_token="abc")),
        ({"identitytoken": "abc"}, Credential(identity_token="abc")),
        ({"registrytoken": "abc", **auth("alice", "pw")}, Credential(registry_token="abc")),
        ({"auth": "", "username": None, "password": None, "email": "a@b.c"}, None),
        ({}, None),
    ],
)
def test_what_an_entry_holds(entry: dict[str, Any], credential: Credential | None) -> None:
    assert find({"harbor.example.com": entry}, "harbor.example.com/llm/x") == credential


def test_an_entry_without_a_credential_is_passed_over() -> None:
    auths = {"harbor.example.com/llm": {}, "harbor.example.com": auth("alice", "pw")}
    assert find(auths, "harbor.example.com/llm/x") == Credential(username="alice", password="pw")


def test_the_older_form_has_its_entries_on_top() -> None:
    text = json.dumps({"https://harbor.example.com": {**auth("alice", "pw"), "email": "a@b.c"}})
    found = dockerconfig.find(text, repository("harbor.example.com/llm/x"), WHAT)
    assert found == Credential(username="alice", password="pw")


@pytest.mark.parametrize("text", ["{}", '{"auths": {}}', '{"auths": null}', '{"auths": null, "credsStore": "desktop"}'])
def test_without_entries_there_is_no_credential(text: str) -> None:
    assert dockerconfig.find(text, repository("harbor.example.com/llm/x"), WHAT) is None


def test_helper_programs_are_not_run_and_not_minded() -> None:
    text = json.dumps({"credsStore": "desktop", "credHelpers": {"harbor.example.com": "ecr-login"}})
    assert dockerconfig.find(text, repository("harbor.example.com/llm/x"), WHAT) is None


def test_entries_for_others_are_not_looked_into() -> None:
    auths = {"other.example.com": {"auth": "?"}, "harbor.example.com": auth("alice", "pw"), "broken": 5}
    assert find(auths, "harbor.example.com/llm/x") == Credential(username="alice", password="pw")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hunter2",
        '"hunter2"',
        "[]",
        '{"auths": "hunter2"}',
        '{"auths": {"harbor.example.com": {"auth": "hunter2"}}}',
        '{"auths": {"harbor.example.com": {"auth": "aHVudGVyMg=="}}}',
        '{"auths": {"harbor.example.com": {"auth": "/////w=="}}}',
        '{"auths": {"harbor.example.com": {"auth": 5}}}',
        '{"auths": {"harbor.example.com": {"username": ["hunter2"]}}}',
        '{"auths": {"harbor.example.com": {"username": "hunter2", "password": "\\ud800"}}}',
        '{"auths": {"harbor.example.com": {"registrytoken": "hunter2\\nX-Injected: 1"}}}',
        '{"auths": {"harbor.example.com": {"identitytoken": "hünter2"}}}',
        '{"auths": {"harbor.example.com": {"auth": "hunter2"',
        "[" * 100_000,
        " " * ((1 << 20) + 1),
    ],
    ids=lambda text: text[:70],
)
def test_what_is_malformed_is_named_and_never_shown(text: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{WHAT}") as refused:
        dockerconfig.find(text, repository("harbor.example.com/llm/x"), WHAT)
    shown = "".join(traceback.format_exception(refused.value))
    assert "hunter2" not in shown
    assert "aHVudGVyMg" not in shown
    assert refused.value.__context__ is None


def test_globs_that_would_take_long_to_try_are_no_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may write a mebibyte of them into a Secret."""
    tried: list[str] = []

    def translate(glob: str) -> str:
        tried.append(glob)
        return "(?!)"

    monkeypatch.setattr("fnmatch.translate", translate)
    wanted, login = "harbor.example.com/llm/x", auth("robot", "p")
    for host in ("*a" * 100_000, "[a]" * 100_000, f"{'?' * 400}.example.com", ".".join("*" * 1000)):
        assert find({host: login}, wanted) is None
    assert find({f"{number}.example.com": login for number in range(MAX_ENTRIES)}, "7.example.com/llm/x") is not None
    assert tried == []  # what is no glob is compared
    with pytest.raises(InvalidRequest, match="more than 1024 entries"):
        find({f"{number}*.example.com": login for number in range(MAX_ENTRIES + 1)}, wanted)
    assert find({"*.example.com": login}, wanted) is None
    assert tried == ["*"]


@given(
    st.text(max_size=200) | st.recursive(st.none() | st.text(), lambda v: st.dictionaries(st.text(), v)).map(json.dumps)
)
def test_whatever_stands_there_nothing_else_is_raised(text: str) -> None:
    try:
        found = dockerconfig.find(text, Repository("harbor.example.com", "llm/x"), WHAT)
    except InvalidRequest:
        return
    assert found is None
