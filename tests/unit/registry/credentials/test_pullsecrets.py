"""The imagePullSecrets of a service account, by way of an API server."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.config import Kubernetes, Settings
from modelmount.errors import InvalidRequest, Unavailable
from modelmount.kube import account
from modelmount.kube.api import Api
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import Credentials, ServiceAccount
from tests.fakes.kube import ApiServer

REPOSITORY = Repository("harbor.example.com", "llm/one")
ACCOUNT = ServiceAccount("team-a", "default")
PATH = "/api/v1/namespaces/team-a"
SETTINGS = Settings(kubernetes=Kubernetes(pull_secrets=True))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "account") as started:
        started.objects[f"{PATH}/serviceaccounts/default"] = {
            "metadata": {"name": "default"},
            "imagePullSecrets": [{"name": "gone"}, {"name": "other"}, {"name": "right"}],
        }
        put(started, "other", "ghcr.io", "other")
        put(started, "right", "harbor.example.com", "s3cret")
        yield started


@pytest.fixture
def credentials(server: ApiServer) -> Iterator[Credentials]:
    api = Api(account.find(str(server.directory), server.environment))
    yield Credentials(SETTINGS, api)
    api.close()


def put(server: ApiServer, name: str, host: str, password: str) -> None:
    config = {"auths": {host: {"username": "robot", "password": password}}}
    data = {".dockerconfigjson": base64.b64encode(json.dumps(config).encode()).decode()}
    server.objects[f"{PATH}/secrets/{name}"] = {"metadata": {"name": name}, "data": data}


def test_the_first_that_is_for_the_repository_counts_and_a_changed_one_at_once(
    server: ApiServer, credentials: Credentials
) -> None:
    assert credentials.find(REPOSITORY, {}, account=ACCOUNT).password == "s3cret"
    put(server, "right", "harbor.example.com", "changed")
    assert credentials.find(REPOSITORY, {}, account=ACCOUNT).password == "changed"


def test_what_a_volume_brings_comes_first_and_then_nobody_is_asked(server: ApiServer, credentials: Credentials) -> None:
    found = credentials.find(REPOSITORY, {"username": "own", "password": "own"}, account=ACCOUNT)
    assert found.username == "own"
    assert server.requests == []


def test_off_by_default_and_without_an_account_nobody_is_asked(server: ApiServer, credentials: Credentials) -> None:
    api = Api(account.find(str(server.directory), server.environment))
    assert Credentials(Settings(), api).find(REPOSITORY, {}, account=ACCOUNT).is_anonymous
    assert credentials.find(REPOSITORY, {}).is_anonymous
    assert server.requests == []
    api.close()


def test_another_namespaces_account_opens_nothing(credentials: Credentials) -> None:
    assert credentials.find(REPOSITORY, {}, account=ServiceAccount("team-b", "default")).is_anonymous


def test_without_the_right_there_are_none_which_is_said_once(
    server: ApiServer, credentials: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    server.denied.add("GET")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert credentials.find(REPOSITORY, {}, account=ACCOUNT).is_anonymous
    (said,) = [
        each.getMessage() for each in caplog.records if each.name == "modelmount.registry.credentials.pullsecrets"
    ]
    assert "pullSecrets" in said


def test_trouble_with_the_api_server_is_not_taken_for_no_credential(
    server: ApiServer, credentials: Credentials
) -> None:
    server.broken = 1
    with pytest.raises(Unavailable):
        credentials.find(REPOSITORY, {}, account=ACCOUNT)


def test_a_secret_that_cannot_be_used_is_named_without_anything_of_it(
    server: ApiServer, credentials: Credentials
) -> None:
    data = {".dockerconfigjson": base64.b64encode(b"s3cret, no JSON").decode()}
    server.objects[f"{PATH}/secrets/other"]["data"] = data
    with pytest.raises(InvalidRequest, match="Secret other of the service account") as refused:
        credentials.find(REPOSITORY, {}, account=ACCOUNT)
    assert "s3cret" not in str(refused.value)
