"""llama.cpp serves from a volume: the same words as from a plain file, and how soon the first of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Node
from tests.engines.conftest import Figures
from tests.engines.engine import Llama
from tests.fakes import push
from tests.fakes.proxy import Proxy
from tests.fakes.registry import Registry
from tests.fakes.tools import tool

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(900)]

ROUNDS = int(os.environ.get("MODELMOUNT_ROUNDS", "3"))
WAYS = ("cold", "warm", "init")
LINK_BYTES_PER_SECOND = 25_000_000
"""A registry that is no neighbour."""


@pytest.fixture
def files(tmp_path: Path, gguf: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    shutil.copy(gguf, directory / "model.gguf")
    (directory / "config.json").write_text('{"model_type": "llama"}\n')
    return directory


@pytest.mark.parametrize(
    ("build", "name"),
    [
        pytest.param(push.modelpack, "model.gguf", id="ModelPack raw"),
        pytest.param(lambda d: push.modelkit(d, packing="tar+gzip"), "model.gguf", id="ModelKit tar+gzip"),
        pytest.param(push.modelcar, "model.gguf", id="container image"),
    ],
)
def test_it_says_from_a_volume_what_it_says_from_a_file(
    node: Node, files: Path, llama_python: Path, build: Callable[[Path], push.Artifact], name: str, tmp_path: Path
) -> None:
    with Llama(llama_python, files / "model.gguf", tmp_path / "file.log") as engine:
        expected = engine.complete()
    assert "Paris" in expected
    pushed = node.pusher.artifact("llm/smollm2", "v1", build(files))
    pods = [node.pod(f"engine-{number}", pushed.reference) for number in range(2)]
    for pod in pods:
        node.kubelet.wait_running(pod)
    assert os.path.samefile(*(node.mount(pod) / name for pod in pods))
    for pod in pods:
        with Llama(llama_python, node.mount(pod) / name, tmp_path / f"{pod.name}.log") as engine:
            assert engine.complete() == expected
            mapped = Path(f"/proc/{engine.pid}/maps").read_text()
            assert str(node.mount(pod) / name) in mapped
    for pod in pods:
        node.kubelet.delete(pod)
        node.kubelet.wait_gone(pod)
    assert node.kubelet.leftovers() == []


def test_it_goes_on_while_the_driver_is_killed_and_the_registry_is_gone(
    node: Node, files: Path, llama_python: Path, tmp_path: Path
) -> None:
    pod = node.pod("engine", node.pusher.artifact("llm/smollm2", "v1", push.modelpack(files)).reference)
    node.kubelet.wait_running(pod)
    with Llama(llama_python, node.mount(pod) / "model.gguf", tmp_path / "engine.log") as engine:
        before = engine.complete()
        node.driver.kill()
        node.registry.stop()
        assert engine.complete() == before
        node.driver.start()
        assert engine.complete() == before


@pytest.mark.parametrize("rate", [None, LINK_BYTES_PER_SECOND], ids=["loopback", "25 MB/s"])
def test_how_soon_the_first_token_is_there(
    make_node: Callable[..., Node], files: Path, llama_python: Path, tmp_path: Path, figures: Figures, rate: int | None
) -> None:
    """From the pod's creation to the first token: with a volume whose model isn't on the node, with one whose model is,
    and with an init container's `oras pull` into an emptyDir. In turn. Images and starts of containers are left out.
    """
    with Registry(tmp_path / "registry") as registry, Proxy(registry.port, rate=rate) as link:
        node = make_node(registry=registry, through=link)
        host = registry.host if rate is None else link.host
        ways: dict[str, list[float]] = {f"{way}_{what}_s": [] for way in WAYS for what in ("files", "token")}
        for number in range(ROUNDS):
            with (files / "model.gguf").open("ab") as model:
                model.write(number.to_bytes(8))  # another model for the store, the same one for llama.cpp
            pushed = node.pusher.artifact("llm/smollm2", f"v{number}", push.oras(files))
            reference = pushed.reference.replace(registry.host, host)
            downloads = []
            for way in WAYS:
                name = f"{way}-{number}"
                begun = time.monotonic()
                if way == "init":
                    directory = tmp_path / name
                    command = [str(tool("oras")), "pull", "--no-tty", "--plain-http", reference, "-o", str(directory)]
                    subprocess.run(command, check=True, capture_output=True)
                else:
                    pod = node.pod(name, reference)
                    node.kubelet.wait_running(pod)
                    directory = node.mount(pod)
                downloads.append(registry.blob_gets())
                ways[f"{way}_files_s"].append(time.monotonic() - begun)
                with Llama(llama_python, directory / "model.gguf", tmp_path / f"{name}.log") as engine:
                    assert engine.first_token() == " Paris"
                    ways[f"{way}_token_s"].append(time.monotonic() - begun)
            cold, warm, init = downloads
            assert cold == warm
            assert warm < init
        figures.note("loopback" if rate is None else "25 MB/s", ways)
