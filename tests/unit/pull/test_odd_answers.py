"""Answers that are neither a yes, nor a refusal as it is written, nor trouble. They are no outage: no record counts."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.config import Auth
from modelmount.content.store import Store
from modelmount.errors import ModelMountError, Unavailable
from modelmount.pull.proofs import DOWN_SECONDS, Proof, Proofs
from modelmount.registry.client import Client
from modelmount.transport.retry import Policy
from tests.fakes.wire import Answer, WireServer, challenge, document, redirect
from tests.unit.registry.asking import ALICE, MANIFEST, MANIFEST_DIGEST, PINNED, settings_for, tiny

YES = Answer(body=MANIFEST, headers=[("Docker-Content-Digest", str(MANIFEST_DIGEST))])
LOGIN = Answer(body=b"<html>Who are you?</html>", headers=[("Content-Type", "text/html")])


class Scene:
    """A registry, and a node on which two minutes pass each time that Alice asks."""

    def __init__(self, server: WireServer, client: Client, directory: Path) -> None:
        self.server, self.client = server, client
        self.store = Store(directory)
        server.on("/login", LOGIN)
        server.on("/again", redirect(f"{server.url}/again"))
        self.proofs = Proofs(self.store, Auth(), clock=itertools.count(1e9, 4 * DOWN_SECONDS).__next__)

    def agrees(self) -> None:
        """It says yes to Alice, and the node remembers."""
        self.server.on(PINNED, YES)
        assert self.read() == "registry"
        assert self.records

    def read(self) -> Proof:
        def ask() -> None:
            self.client.exists(tiny(self.server), MANIFEST_DIGEST, ALICE)

        return self.proofs.prove(tiny(self.server), MANIFEST_DIGEST, MANIFEST_DIGEST, ALICE, ask)

    def wants_token(self, answer: Answer) -> None:
        """From now on a token is wanted, whose server answers so."""
        self.server.on(PINNED, challenge(f'Bearer realm="{self.server.url}/token",service="registry"'))
        self.server.on("/token", answer)

    @property
    def records(self) -> list[Path]:
        return list(self.store.root.glob("models/*/proofs/*"))

    def opens_nothing_now_or_later(self) -> None:
        """Not though there was a record, nor by it once the registry is down."""
        with pytest.raises(ModelMountError):
            self.read()
        assert not self.records
        self.server.on(PINNED, Answer(503))
        with pytest.raises(Unavailable):
            self.read()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with WireServer() as server:
        client = Client(settings_for(server), policy=Policy(first_seconds=0.001, longest_seconds=0.001))
        try:
            yield Scene(server, client, tmp_path / "store")
        finally:
            client.close()


def test_a_status_that_is_no_trouble_opens_nothing_and_ends_grace(scene: Scene) -> None:
    for status in (204, 206, 300, 304, 400, 402, 405, 406, 410, 418, 423, 451):
        scene.agrees()
        scene.server.on(PINNED, Answer(status))
        scene.opens_nothing_now_or_later()


def test_a_status_that_is_no_trouble_costs_one_get_for_its_reason(scene: Scene) -> None:
    scene.server.on(PINNED, Answer(451, b'{"errors":[{"code":"DENIED","message":"export control"}]}'))
    with pytest.raises(Unavailable, match="export control"):
        scene.read()
    assert [asked.method for asked in scene.server.asked(PINNED)] == ["HEAD", "GET"]


def test_a_page_to_log_in_is_no_yes_and_no_outage(scene: Scene) -> None:
    """What stands before a registry may send whom it doesn't know to a page for people, which is there for anybody."""
    with WireServer() as elsewhere:
        elsewhere.on("/login", LOGIN)
        for url in (
            f"{scene.server.url}/login",
            f"{scene.server.url}/again",
            f"{scene.server.url}/missing",
            f"{elsewhere.url}/login",
            f"{elsewhere.url}/missing",
        ):
            scene.agrees()
            scene.server.on(PINNED, redirect(url, 302))
            scene.opens_nothing_now_or_later()


def test_a_token_server_that_gives_no_token_is_not_down(scene: Scene) -> None:
    for answer in (
        Answer(400),
        Answer(404),
        Answer(410),
        LOGIN,
        redirect("/login", 302),
        document({}),
        document({"token": ""}),
        document({"error": "access_denied"}),
    ):
        scene.agrees()
        scene.wants_token(answer)
        scene.opens_nothing_now_or_later()


def test_trouble_is_trouble_the_registrys_and_its_token_servers(scene: Scene) -> None:
    scene.agrees()
    for answer in (*(Answer(status) for status in (408, 425, 429, 500, 502, 503, 504, 521)), Answer(hang_up=True)):
        scene.server.on(PINNED, answer)
        assert scene.read() == "grace"
        scene.wants_token(answer)
        assert scene.read() == "grace"
