"""Registries and scenes for tests of faults, and the list of what was played."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.config import Settings
from modelmount.registry import client
from modelmount.transport.pool import Pool
from modelmount.transport.retry import Policy
from tests.fakes import push
from tests.fakes.gateway import Gateway
from tests.fakes.registry import Registry
from tests.fakes.rows import Rows
from tests.fakes.wire import WireServer
from tests.faults import crash
from tests.faults.scene import ALICE, Model, Scene, model_in
from tests.faults.trials import Shop

RESULTS = Path(__file__).resolve().parent.parent.parent / "build/faults.json"
"""One named row for each case of the last run: `{"rows": [{"row": …, "outcome": "passed", "seconds": …}, …]}`."""


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The model in a registry for everybody."""
    directory = tmp_path_factory.mktemp("public")
    with Registry(directory / "registry") as started, model_in(started, directory / "model") as model:
        yield model


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The same in a registry that wants Alice's password."""
    directory = tmp_path_factory.mktemp("private")
    authorization = push.basic(ALICE.username, ALICE.password)
    with (
        Registry(directory / "registry", users={ALICE.username: ALICE.password}) as started,
        model_in(started, directory / "model", authorization) as model,
    ):
        yield model


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Models for those who are killed on the way to them."""
    directory = tmp_path_factory.mktemp("shop")
    with Registry(directory / "registry") as started:
        yield Shop(directory, started)


@pytest.fixture
def scene(public: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A scene before the public registry."""
    with (
        Gateway(public.registry) as gateway,
        Gateway(public.registry) as storage,
        WireServer() as elsewhere,
    ):
        yield from setting(Scene(tmp_path, public, gateway, storage, elsewhere), monkeypatch)


@pytest.fixture
def locked(private: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A scene before the private registry, whose storage needs no password of ours; Alice pulls."""
    authorization = push.basic(ALICE.username, ALICE.password)
    with (
        Gateway(private.registry) as gateway,
        Gateway(private.registry, authorization=authorization) as storage,
        WireServer() as elsewhere,
    ):
        made = Scene(tmp_path, private, gateway, storage, elsewhere)
        made.credential = ALICE
        yield from setting(made, monkeypatch)


def setting(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """The pool gets the scene's resolver and pace, and nobody waits between tries."""
    delay = Policy.delay

    def hurried(policy: Policy, failures: int, retry_after: float | None = None) -> float:
        scene.waits.append((delay(policy, failures, retry_after), retry_after))
        return 0.0 if scene.hurry else scene.waits[-1][0]

    def pool(settings: Settings) -> Pool:
        return Pool(settings, pace=scene.pace, lookup=scene.lookup)

    monkeypatch.setattr(Policy, "delay", hurried)
    monkeypatch.setattr(client, "Pool", pool)
    yield scene
    scene.close()


# -- the list of what was played


_played = Rows("tests/faults/")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each test of this directory."""
    _played.note(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many rows there were, and keep their names."""
    if not _played.rows:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"rows": _played.rows}, indent=1) + "\n")
    terminalreporter.write_line(f"faults: {len(_played.rows)} rows, {_played.passed} passed")
    if line := crash.line():
        terminalreporter.write_line(line)
