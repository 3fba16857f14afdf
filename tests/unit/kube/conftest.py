"""An API server, and a client of it with the account that the server made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelmount.kube import account
from modelmount.kube.api import Api
from tests.fakes.kube import ApiServer

EVENT_SECONDS = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "account") as started:
        yield started


@pytest.fixture
def api(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr("modelmount.kube.api.ANSWER_SECONDS", EVENT_SECONDS)
    made = Api(account.find(str(server.directory), server.environment))
    yield made
    made.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + EVENT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
