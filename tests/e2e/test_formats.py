"""One model of each family of formats, through a real registry and a real driver to the tree that a pod sees."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Node, contents, directories, write_model
from tests.fakes import push
from tests.fakes.kubelet import Pod, Volume

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
    assert_plain(node.mount(pod))


def assert_plain(tree: Path) -> None:
    """Files and directories only; who made them, when, and with which mode isn't to be seen."""
    for path in (tree, *tree.rglob("*")):
        status = path.lstat()
        assert status.st_mode in {stat.S_IFREG | 0o444, stat.S_IFDIR | 0o555}, path
        assert (status.st_uid, status.st_gid, status.st_mtime) == (0, 0, 315532800), path
        assert [name for name in os.listxattr(path) if not name.startswith("security.")] == []


def test_an_ollama_model_has_the_names_that_engines_expect(node: Node) -> None:
    parts = [("model", b"GGUF" * 1000), ("template", b"{{ .Prompt }}"), ("license", b"MIT"), ("license", b"more")]
    pod = node.pod("reader", node.pusher.artifact("library/tiny", "latest", push.ollama(parts)).reference)
    node.kubelet.wait_running(pod)
    names = ("model.gguf", "template", "LICENSE", "LICENSE.1")
    found = {name: (node.mount(pod) / name).read_bytes() for name in names}
    assert found == dict(zip(names, (content for _, content in parts), strict=True))
    assert {path.name for path in node.mount(pod).iterdir()} == set(names)


def test_only_what_is_shown_is_pulled_and_the_rest_when_it_is(node: Node, files: Path) -> None:
    (files / "pytorch_model.bin").write_bytes(b"the same again" * 1000)
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files, packing="tar"))
    some = node.pod("some", pushed.reference, include='["/*"]', exclude="*.bin\nempty.txt\n1_Pooling/", subDir="model")
    node.kubelet.wait_running(some)
    expected = {name: data for name, data in contents(files).items() if name.endswith((".safetensors", ".json"))}
    expected.pop("1_Pooling/config.json")
    assert contents(node.mount(some) / "model") == expected
    layers = dict(zip(push.files_below(files), pushed.layers, strict=True))
    assert set(node.registry.blob_gets()) == {layers[name] for name in expected}
    whole = node.pod("whole", pushed.reference)
    node.kubelet.wait_running(whole)
    assert contents(node.mount(whole)) == contents(files)
    assert set(node.registry.blob_gets().values()) == {1}
    assert os.path.samefile(node.mount(some) / "model/config.json", node.mount(whole) / "config.json")


def test_a_model_is_found_by_its_name_in_the_cache_of_hugging_face(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    pod = node.pod("reader", pushed.reference, layout="hf-cache", hfRepo="org/tiny")
    node.kubelet.wait_running(pod)
    cached = node.mount(pod) / "models--org--tiny"
    assert contents(cached / "snapshots" / (cached / "refs/main").read_text()) == contents(files)
    assert {path.name for path in node.mount(pod).rglob("*") if path.parent in {node.mount(pod), cached}} == {
        "models--org--tiny",
        "refs",
        "snapshots",
    }


def test_an_entry_of_an_index_is_chosen_by_its_annotation(node: Node, files: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=3)
    large = node.pusher.artifact("llm/many", "large", push.modelpack(files))
    small = node.pusher.artifact("llm/many", "small", push.modelpack(other))
    entries = [(large, {"annotations": {"quantization": "none"}}), (small, {"annotations": {"quantization": "Q4"}})]
    index = node.pusher.index("llm/many", "v1", entries)
    undecided = node.pod("undecided", index.reference)
    node.kubelet.wait_event("FailedMount", "'quantization=Q4'", pod=undecided)
    pod = node.pod("reader", index.reference, select="quantization=Q4")
    node.kubelet.wait_running(pod)
    assert contents(node.mount(pod)) == contents(other)


def test_a_volume_of_model_csi_driver_needs_only_our_drivers_name(node: Node, files: Path) -> None:
    (files / "pytorch_model.bin").write_bytes(b"the same again" * 1000)
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    attributes = {"reference": pushed.reference, "type": "image", "exclude-file-patterns": '["*.bin"]'}
    keys = {f"model.csi.modelpack.org/{key}": value for key, value in attributes.items()}
    pod = node.kubelet.run(Pod("migrated", (Volume("model", keys),)))
    node.kubelet.wait_running(pod)
    expected = contents(files)
    del expected["pytorch_model.bin"]
    assert contents(node.mount(pod)) == expected
    node.registry.stop()
    node.kubelet.restart()
    node.kubelet.wait_running(pod)
    assert contents(node.mount(pod)) == expected
