"""One model of each family of formats, through a real registry and a real driver to the tree that a pod sees."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Node, contents, directories, write_model
from tests.fakes import push

pytestmark = [pytest.mark.mount, pytest.mark.registry]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(push.modelcar, id="container image gzip"),
        pytest.param(lambda d: push.modelcar(d, packing="tar"), id="container image tar"),
        pytest.param(lambda d: push.modelcar(d, packing="tar+zstd"), id="container image zstd"),
        pytest.param(push.modelkit, id="ModelKit tar"),
        pytest.param(lambda d: push.modelkit(d, packing="tar+gzip"), id="ModelKit tar+gzip"),
        pytest.param(lambda d: push.modelkit(d, packing="raw"), id="ModelKit raw"),
        pytest.param(push.docker_model, id="Docker Model Runner"),
    ],
)
def test_a_model_of_each_family_becomes_its_files(
    node: Node, files: Path, build: Callable[[Path], push.Artifact]
) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", build(files))
    pod = node.pod("reader", pushed.reference)
    node.kubelet.wait_running(pod)
    assert contents(node.mount(pod)) == contents(files)
    assert directories(node.mount(pod)) == directories(files)
    assert set(node.registry.blob_gets().values()) == {1}
    assert not any(path.is_symlink() for path in node.mount(pod).rglob("*"))
    assert {path.stat().st_uid for path in node.mount(pod).rglob("*")} == {os.geteuid()}


def test_an_ollama_model_has_the_names_that_engines_expect(node: Node) -> None:
    parts = [("model", b"GGUF" * 1000), ("template", b"{{ .Prompt }}"), ("license", b"MIT"), ("license", b"more")]
    pod = node.pod("reader", node.pusher.artifact("library/tiny", "latest", push.ollama(parts)).reference)
    node.kubelet.wait_running(pod)
    names = ("model.gguf", "template", "LICENSE", "LICENSE.1")
    found = {name: (node.mount(pod) / name).read_bytes() for name in names}
    assert found == dict(zip(names, (content for _, content in parts), strict=True))
    assert {path.name for path in node.mount(pod).iterdir()} == set(names)
