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
