"""A pull that is stopped while it waits for the other side ends at once, wherever that is, and leaves nothing held."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from modelmount.config import Pull
from modelmount.errors import ModelMountError
from modelmount.transport.dial import Found
from tests.fakes.gateway import Act, instead, spoil
from tests.fakes.wire import Answer, Asked, Names
from tests.faults.scene import MIB, PATIENT, Scene, manifest, of, wait_for

pytestmark = [pytest.mark.registry, pytest.mark.timeout(120)]

FOR_EVER = Pull(connect_timeout_seconds=3600, read_timeout_seconds=3600, document_timeout_seconds=3600)
SILENT = instead(Answer(raw=b"", stall_after=0))
LATER = instead(Answer(503, headers=[("Retry-After", "600")]))


@pytest.mark.parametrize(
    ("concerns", "act", "least"),
    [
        pytest.param("manifest", SILENT, 0, id="for the head of a manifest"),
        pytest.param("small", SILENT, 0, id="for the head of a small file"),
        pytest.param("small", spoil(stall_after=10), 0, id="in the middle of a small file"),
        pytest.param("small", LATER, 0, id="to ask for a small file again"),
        pytest.param("weights", SILENT, 0, id="for the head of a large one"),
        pytest.param("weights", spoil(stall_after=2 * MIB), 2 * MIB, id="in the middle of a large one"),
        pytest.param("weights", LATER, 0, id="to ask for a large one again"),
        pytest.param("archive", SILENT, 0, id="for the head of an archive"),
        pytest.param(
            "archive", spoil(stall_after=300_000), 300_000, id="in the middle of an archive that is being unpacked"
        ),
        pytest.param("archive", LATER, 0, id="to ask for an archive again"),
    ],
)
def test_a_stopped_pull_ends_at_once_while_it_waits(concerns: str, act: Act, least: int, scene: Scene) -> None:
    """Once so many bytes came, at `least`."""
    model = scene.model
    named = {"small": model.small, "weights": model.weights, "archive": model.archive}
    which = manifest if concerns == "manifest" else of(named[concerns])
    scene.play(which, act, None)
    stopped_while(lambda: any(map(which, scene.gateway.asked())) and scene.fetched >= least, scene)


def test_a_stopped_pull_ends_at_once_while_it_waits_for_a_token(scene: Scene) -> None:
    def challenge(asked: Asked, gateway: object) -> Answer:
        return Answer(401, headers=[("WWW-Authenticate", f'Bearer realm="{scene.gateway.url}/token",service="s"')])

    scene.play(of(scene.model.weights), challenge, None)
    scene.play(lambda asked: asked.path == "/token", SILENT, None)
    stopped_while(lambda: any(asked.path == "/token" for asked in scene.gateway.asked()), scene)


def test_a_stopped_pull_ends_at_once_while_it_waits_for_a_name(scene: Scene) -> None:
    asked, over = threading.Event(), threading.Event()

    def stall(host: str, port: int, **_: object) -> Found:
        asked.set()
        over.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    scene.host = f"registry.test:{scene.gateway.port}"
    scene.lookup = stall

    def recover() -> None:
        over.set()
        scene.lookup = Names({"registry.test": ["127.0.0.1"]})

    stopped_while(asked.is_set, scene, recover)


def stopped_while(waits: Callable[[], bool], scene: Scene, recover: Callable[[], None] = lambda: None) -> None:
    """Stop the node once the pull `waits`: nothing is left of it then, and the next one succeeds."""
    scene.pull_settings, scene.hurry = FOR_EVER, False
    ended: list[ModelMountError] = []

    def pull() -> None:
        try:
            scene.pull()
        except ModelMountError as e:
            ended.append(e)

    puller = threading.Thread(target=pull, name="Thread-puller", daemon=True)
    puller.start()
    wait_for(waits, "the pull to wait")
    scene.close()
    puller.join(20)
    assert not puller.is_alive()
    assert ended
    recover()
    scene.assert_sound()
    scene.gateway.calm()
    scene.pull_settings, scene.hurry = PATIENT, True
    assert scene.pull() == scene.model.files
    scene.assert_sound()
