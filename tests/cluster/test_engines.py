"""A real engine in a pod: llama.cpp serves a real model from a volume, and how soon its first token is there."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from pathlib import Path

import pytest
import urllib3

from tests.cluster import images
from tests.cluster.api import Object, wait
from tests.cluster.conftest import Figures
from tests.cluster.world import WAIT_SECONDS, Model, World
from tests.engines import engine
from tests.fakes import push

pytestmark = pytest.mark.timeout(1800)

ROUNDS = int(os.environ.get("MODELMOUNT_ROUNDS", "1"))
PORT = 8080
NAME = "model.gguf"


@pytest.fixture(scope="module")
def engines(started: World) -> None:
    """The engine's images are on the node."""
    for archive in images.of_engines():
        started.cluster.run("ctr", "images", "import", "--no-unpack", str(archive))


def serving(world: World, name: str, volume: Object) -> Object:
    """A pod whose container is llama.cpp on the volume's model."""
    pod = world.pod(name, {"model": volume})
    (container,) = pod["spec"]["containers"]
    del container["command"]
    container.update(image=images.ENGINE, args=[f"/model/{NAME}", "0.0.0.0", str(PORT)], stdin=True)
    return pod


def copying(world: World, name: str, model: Model) -> Object:
    """The same with an init container that copies the model into an emptyDir."""
    pod = serving(world, name, {"emptyDir": {}})
    pod["spec"]["initContainers"] = [
        {
            "name": "pull",
            "image": images.ORAS,
            "args": ["pull", "--no-tty", "--plain-http", model.reference, "-o", "/model"],
            "volumeMounts": [{"name": "model", "mountPath": "/model"}],
        }
    ]
    return pod


def address(world: World, name: str) -> str:
    """Where the pod's engine serves, once it does."""

    def look() -> str:
        found = world.api.get("Pod", name)
        ip = (found or {}).get("status", {}).get("podIP")
        if not ip:
            return ""
        url = f"http://{ip}:{PORT}"
        try:
            healthy = urllib3.request("GET", f"{url}/health", retries=False, timeout=5.0).status == 200
        except urllib3.exceptions.HTTPError:
            return ""
        return url if healthy else ""

    return wait(f"the engine of pod {name} serves", look, WAIT_SECONDS)


@pytest.mark.usefixtures("engines")
def test_an_engine_serves_from_a_volume(world: World, figures: Figures) -> None:
    source = world.directory / "engine"
    source.mkdir()
    shutil.copy(images.gguf(), source / NAME)
    seconds: dict[str, list[float]] = {"cold": [], "warm": [], "init": []}
    for number in range(ROUNDS):
        model = _another(world, source, number)
        for way, times in seconds.items():
            name = f"{way}-{number}"
            pod = copying(world, name, model) if way == "init" else serving(world, name, world.inline(model))
            begun = time.monotonic()
            world.api.create(pod)
            url = address(world, name)
            token = engine.first_token(url)
            times.append(time.monotonic() - begun)
            assert token == " Paris"
            if way == "cold":
                fetched = world.fetched(model)
            elif way == "warm":
                assert world.fetched(model) == fetched
            assert "Paris" in engine.complete(url)
            world.gone(name)
    figures.update({f"{way}_token_s": round(statistics.median(times), 2) for way, times in seconds.items()})


def _another(world: World, source: Path, number: int) -> Model:
    """Another model for the store, the same one for llama.cpp."""
    with (source / NAME).open("ab") as model:
        model.write(number.to_bytes(8))
    return world.push(source, build=push.oras)
