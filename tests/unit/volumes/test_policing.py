"""The admin's policy at each publish: what it refuses isn't pulled, what is mounted stays, a changed file counts."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmount.errors import Forbidden, InvalidRequest
from modelmount.policy.kinds import HEAD_BYTES
from tests.fakes import push
from tests.unit.volumes.conftest import EVENT_SECONDS, POD_UID, Call, MakeNode, Node, Request, contents

pytestmark = [pytest.mark.mount, pytest.mark.registry]

NAMESPACE = "csi.storage.k8s.io/pod.namespace"
FILES = {"config.json": b"{}\n", "weights.txt": b"weights" * 1000}


class Ruled:
    """A node with a policy."""

    def __init__(self, make_node: MakeNode, file: Path, text: str) -> None:
        self.file = file
        self.file.write_text(text)
        self.node: Node = make_node(policy_file=str(file))

    def write(self, text: str) -> None:
        """Replace the file, as a ConfigMap is."""
        other = self.file.with_suffix(".new")
        other.write_text(text)
        other.rename(self.file)

    def publish(self, model: str, pod: str = "pod", namespace: str = "dev", **attributes: str) -> Path:
        target = self.node.target(pod)
        own = {"model": model, POD_UID: "a-pod", NAMESPACE: namespace, **attributes}
        self.node.publisher.publish(Request(pod, str(target), own), Call(time.monotonic() + EVENT_SECONDS))
        return target

    def refused(self, model: str, pod: str = "pod", *, match: str) -> None:
        with pytest.raises(Forbidden, match=match):
            self.publish(model, pod)

    def asked(self) -> list[str]:
        found = [f"{r.method} {'blob' if r.digest else 'manifest'}" for r in self.node.registry.requests()]
        self.node.registry.forget()
        return found


def ruled(make_node: MakeNode, tmp_path: Path, text: str) -> Ruled:
    return Ruled(make_node, tmp_path / "policy.toml", text)


def test_what_the_name_forbids_is_asked_of_nobody(make_node: MakeNode, tmp_path: Path) -> None:
    text = '[default]\nallow = false\n[[rule]]\nname = "team"\nnamespaces = ["team-*"]\nmodels = ["*/llm/*"]\n'
    it = ruled(make_node, tmp_path, text)
    pushed = it.node.push(FILES)
    it.refused(pushed.reference, match="rule 'default' of this node's policy")
    assert it.asked() == []
    assert contents(it.publish(pushed.reference, namespace="team-1")) == FILES
    it.refused(pushed.reference, "other-pod", match="rule 'default'")  # that it is here changes nothing


@pytest.mark.parametrize(
    ("demand", "match"),
    [
        ("max_bytes = 1000", "declares 7003 bytes, more than 1000"),
        ('formats = ["Ollama"]', "is of the format ModelPack"),
        ('deny_files = ["pickle"]', r"'sub/model.pkl' \(pickle\)"),
        ('files = ["text"]', r"'sub/model.pkl' \(pickle\)"),
    ],
)
def test_what_the_manifest_forbids_is_not_pulled(make_node: MakeNode, tmp_path: Path, demand: str, match: str) -> None:
    it = ruled(make_node, tmp_path, f"[default]\n{demand}\n")
    pushed = it.node.push({"config.json": b"{}\n", "sub/model.pkl": b"weights" * 1000})
    it.refused(pushed.reference, match=match)
    assert it.asked() == ["GET manifest"]
    it.node.assert_nothing_left()


def test_a_pickle_by_another_name_is_not_mounted(make_node: MakeNode, tmp_path: Path) -> None:
    it = ruled(make_node, tmp_path, '[default]\ndeny_files = ["pickle"]\n')
    pushed = it.node.push({"model.safetensors": pickle.dumps({"a": [1, 2]})})
    for pod in ("one", "two"):
        it.refused(pushed.reference, pod, match=r"'model.safetensors' \(pickle\)")
    it.node.assert_nothing_left()
    it.write("[default]\n")
    assert list(contents(it.publish(pushed.reference))) == ["model.safetensors"]


def test_a_large_pickle_by_another_name_is_not_pulled(make_node: MakeNode, tmp_path: Path) -> None:
    it = ruled(make_node, tmp_path, '[default]\ndeny_files = ["pickle"]\n')
    pushed = it.node.push({"config.json": b"{}\n", "model.safetensors": pickle.dumps({"a": bytes(4 << 20)})})
    it.node.registry.forget()
    it.refused(pushed.reference, match=r"'model.safetensors' \(pickle\)")
    blobs = [request for request in it.node.registry.requests() if request.digest]
    assert len(blobs) == 2  # the first bytes of each file
    assert sum(request.size for request in blobs) == len(b"{}\n") + HEAD_BYTES
    it.node.assert_nothing_left()


@pytest.mark.parametrize(
    ("build", "name"),
    [
        pytest.param(lambda d: push.modelkit(d, packing="raw"), "model.safetensors", id="ModelKit"),
        pytest.param(lambda d: push.ollama([("model", d / "model.safetensors")]), "model.gguf", id="Ollama"),
    ],
)
def test_a_large_pickle_is_not_pulled_where_the_config_says_what_it_is(
    make_node: MakeNode, tmp_path: Path, build: Callable[[Path], push.Artifact], name: str
) -> None:
    it = ruled(make_node, tmp_path, '[default]\ndeny_files = ["pickle"]\n')
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(pickle.dumps({"a": bytes(4 << 20)}))
    artifact = build(directory)
    pusher = push.Pusher(it.node.registry.host, it.node.registry.connection)
    pushed = pusher.artifact(it.node.repository, "one", artifact)
    it.node.registry.forget()
    it.refused(pushed.reference, match=rf"'{name}' \(pickle\)")
    blobs = [request.size for request in it.node.registry.requests() if request.digest]
    assert sorted(blobs) == [push.measure(artifact.config.content)[1], HEAD_BYTES]
    it.node.assert_nothing_left()


def test_a_source_too_slow_for_a_look_ahead_is_pulled_from_and_judged_then(
    make_node: MakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelmount.volumes.policing.AHEAD_SECONDS", 0.0)
    it = ruled(make_node, tmp_path, '[default]\ndeny_files = ["pickle"]\n')
    pushed = it.node.push({"model.safetensors": pickle.dumps({"a": bytes(1 << 20)})})
    it.node.registry.forget()
    it.refused(pushed.reference, match=r"'model.safetensors' \(pickle\)")
    assert sum(request.size for request in it.node.registry.requests() if request.digest) > 1 << 20
    it.node.assert_nothing_left()


def test_first_bytes_are_looked_at_once_however_often_the_kubelet_comes(make_node: MakeNode, tmp_path: Path) -> None:
    it = ruled(make_node, tmp_path, '[default]\ndeny_files = ["pickle"]\n')
    pushed = it.node.push({"config.json": b"{}\n", "model.safetensors": b"x" * (1 << 20)})
    assert len(contents(it.publish(pushed.reference))) == 2
    assert it.asked().count("GET blob") == 4  # the first bytes of two files, and each of them whole
    it.publish(pushed.reference, "another-pod")
    assert it.asked().count("GET blob") == 0


def test_a_pickle_in_an_archive_is_not_mounted(make_node: MakeNode, tmp_path: Path) -> None:
    it = ruled(make_node, tmp_path, '[default]\ndeny_files = ["pickle"]\n')
    directory = tmp_path / "packed"
    (directory / "deep").mkdir(parents=True)
    (directory / "deep/x.txt").write_bytes(pickle.dumps([1]))
    pusher = push.Pusher(it.node.registry.host, it.node.registry.connection)
    pushed = pusher.artifact(it.node.repository, "packed", push.oras(directory, packed=["deep"]))
    it.refused(pushed.reference, match=r"'deep/x.txt' \(pickle\)")
    it.node.assert_nothing_left()


def test_a_digest_may_be_demanded(make_node: MakeNode, tmp_path: Path) -> None:
    it = ruled(make_node, tmp_path, "[default]\ndigest = true\n")
    pushed = it.node.push(FILES)
    it.refused(pushed.reference, match="must be named by its digest")
    assert contents(it.publish(pushed.pinned)) == FILES


def test_a_warning_is_logged_and_nothing_else(
    make_node: MakeNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    it = ruled(make_node, tmp_path, '[default]\nmode = "warn"\nallow = false\nmax_bytes = 1\nfiles = ["gguf"]\n')
    with caplog.at_level(logging.WARNING):
        assert contents(it.publish(it.node.push(FILES).reference)) == FILES
    warnings = [r.getMessage() for r in caplog.records if "rule 'default'" in r.getMessage()]
    assert len(warnings) == 3


def test_a_changed_policy_counts_for_new_mounts_and_ends_none(make_node: MakeNode, tmp_path: Path) -> None:
    it = ruled(make_node, tmp_path, "[default]\n")
    pushed = it.node.push(FILES)
    first = it.publish(pushed.reference, "first")
    it.write("[default]\nmax_bytes = 1\n")
    it.publish(pushed.reference, "first")  # the kubelet asks again for what is mounted
    assert contents(first) == FILES
    it.refused(pushed.reference, "second", match="more than 1")
    it.write("[default]\n")
    assert contents(it.publish(pushed.reference, "second")) == FILES


def test_after_a_reboot_what_was_mounted_is_judged_again(make_node: MakeNode, tmp_path: Path) -> None:
    it = ruled(make_node, tmp_path, '[default]\nfiles = ["text"]\n')
    pushed = it.node.push(FILES)
    target = it.publish(pushed.reference)
    it.node.reboot()
    it.publish(pushed.reference)
    assert contents(target) == FILES
    it.node.reboot()
    it.write('[default]\nfiles = ["gguf"]\n')
    it.refused(pushed.reference, match="may not be there")


def test_a_mistake_in_a_changed_policy_opens_nothing(
    make_node: MakeNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    it = ruled(make_node, tmp_path, "[default]\nallow = false\n")
    pushed = it.node.push(FILES)
    for wrong in ("[default]\nallow = yes\n", ""):
        it.write(wrong)
        it.refused(pushed.reference, match="rule 'default'")
    it.file.unlink()
    it.refused(pushed.reference, match="rule 'default'")
    assert sum("the changed policy doesn't count" in r.getMessage() for r in caplog.records) == 3


def test_a_driver_does_not_start_with_a_mistake_in_its_policy(make_node: MakeNode, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="policy_file"):
        ruled(make_node, tmp_path, "[[rule]]\n")
