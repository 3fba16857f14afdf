"""Pods get their models: real registry, real driver process, real mounts, and a kubelet that plays by the real rules.

What was fetched is read from the registry's own log; what is mounted from the kernel.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.e2e.conftest import Node, contents, directories, is_read_only, random_bytes, write_model
from tests.fakes import mounts, push
from tests.fakes.driver import Driver
from tests.fakes.kubelet import Claim, Pod, State, Volume
from tests.fakes.registry import Registry, Tls

pytestmark = [pytest.mark.mount, pytest.mark.registry]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(push.modelpack, id="ModelPack raw"),
        pytest.param(lambda d: push.modelpack(d, packing="tar"), id="ModelPack tar"),
        pytest.param(lambda d: push.modelpack(d, packing="tar+gzip"), id="ModelPack tar+gzip"),
        pytest.param(lambda d: push.modelpack(d, packing="tar+zstd"), id="ModelPack tar+zstd"),
        pytest.param(lambda d: push.modelpack_archive(d, packing="tar+gzip"), id="ModelPack one archive"),
        pytest.param(push.oras, id="ORAS files"),
        pytest.param(lambda d: push.oras(d, packed=["1_Pooling"]), id="ORAS files and a directory"),
    ],
)
def test_a_pod_sees_the_files_that_were_pushed(node: Node, files: Path, build: Callable[[Path], push.Artifact]) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", build(files))
    pod = node.pod("reader", pushed.reference)
    node.kubelet.wait_running(pod)
    assert contents(node.mount(pod)) == contents(files)
    assert directories(node.mount(pod)) == directories(files)
    assert set(node.registry.blob_gets().values()) == {1}


def test_the_mount_is_read_only_and_takes_no_programs_devices_or_owners(node: Node, files: Path) -> None:
    pod = node.pod("reader", node.pusher.artifact("llm/tiny", "v1", push.modelpack(files)).reference)
    node.kubelet.wait_running(pod)
    assert mounts.options(node.mount(pod)) >= {"ro", "nosuid", "nodev", "noexec"}
    assert is_read_only(node.mount(pod))
    modes = {path.stat().st_mode & 0o7777 for path in node.mount(pod).rglob("*") if path.is_file()}
    assert modes == {0o444}


def test_a_second_pod_costs_one_manifest_request_and_shares_the_inodes(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    first = node.pod("first", pushed.reference)
    node.kubelet.wait_running(first)
    node.registry.forget()
    second = node.pod("second", pushed.reference)
    node.kubelet.wait_running(second)
    assert [(r.method, r.status) for r in node.registry.requests()] == [("HEAD", 304)]
    weights = "model-00001-of-00002.safetensors"
    assert os.path.samefile(node.mount(first) / weights, node.mount(second) / weights)


def test_ten_pods_at_once_cause_one_download(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    started = [node.pod(f"pod-{n}", pushed.reference) for n in range(10)]
    for pod in started:
        node.kubelet.wait_running(pod)
    assert node.registry.blob_gets() == Counter(with_bytes(pushed))
    assert all(contents(node.mount(pod)) == contents(files) for pod in started)


def with_bytes(pushed: push.Pushed) -> set[str]:
    """The layers that have to be asked for; an empty one is known by its digest."""
    return set(pushed.layers) - {push.measure(b"")[0]}


def test_two_models_of_one_repository_fetch_their_shared_layer_once(node: Node, files: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "other"}\n')
    one = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    two = node.pusher.artifact("llm/tiny", "v2", push.modelpack(other))
    for pushed in (one, two):
        node.kubelet.wait_running(node.pod(pushed.tag, pushed.reference))
    assert set(one.layers) & set(two.layers)
    assert node.registry.blob_gets() == Counter(with_bytes(one) | with_bytes(two))


def test_a_layer_under_two_names_is_one_file_with_two_names(node: Node, tmp_path: Path) -> None:
    directory = tmp_path / "twins"
    directory.mkdir()
    for name in ("a.bin", "b.bin"):
        (directory / name).write_bytes(random_bytes(100_000, 7))
    pushed = node.pusher.artifact("llm/twins", "v1", push.oras(directory))
    pod = node.pod("reader", pushed.reference)
    node.kubelet.wait_running(pod)
    assert os.path.samefile(node.mount(pod) / "a.bin", node.mount(pod) / "b.bin")
    assert node.registry.blob_gets() == Counter({pushed.layers[0]: 1})


def test_another_repository_downloads_its_own_copy_and_both_share_one_file(node: Node, files: Path) -> None:
    mine = node.pusher.artifact("team-a/tiny", "v1", push.modelpack(files))
    theirs = node.pusher.artifact("team-b/tiny", "v1", push.modelpack(files))
    first, second = node.pod("a", mine.reference), node.pod("b", theirs.reference)
    for pod in (first, second):
        node.kubelet.wait_running(pod)
    assert set(node.registry.blob_gets().values()) == {2}
    weights = "model-00001-of-00002.safetensors"
    assert os.path.samefile(node.mount(first) / weights, node.mount(second) / weights)


def test_an_index_gives_this_platform_its_manifest(node: Node, files: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=3)
    right = node.pusher.artifact("llm/multi", "right", push.modelpack(files))
    wrong = node.pusher.artifact("llm/multi", "wrong", push.modelpack(other))
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    index = node.pusher.index(
        "llm/multi",
        "v1",
        [
            (wrong, {"platform": {"os": "linux", "architecture": "s390x"}}),
            (right, {"platform": {"os": "linux", "architecture": machine}}),
        ],
    )
    pod = node.pod("reader", index.reference)
    node.kubelet.wait_running(pod)
    assert contents(node.mount(pod)) == contents(files)


def test_a_pinned_reference_gets_that_digest(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    pod = node.pod("reader", pushed.pinned)
    node.kubelet.wait_running(pod)
    assert contents(node.mount(pod)) == contents(files)


def test_a_moved_tag_changes_new_pods_that_ask_for_it_and_no_running_one(
    node: Node, files: Path, tmp_path: Path
) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    before = node.pod("before", pushed.reference)
    node.kubelet.wait_running(before)
    newer = write_model(tmp_path / "newer", seed=5)
    node.pusher.artifact("llm/tiny", "v1", push.modelpack(newer))
    known = node.pod("known", pushed.reference)
    always = node.pod("always", pushed.reference, pullPolicy="Always")
    for pod in (known, always):
        node.kubelet.wait_running(pod)
    node.kubelet.restart()
    for pod in (before, known, always):
        node.kubelet.wait_running(pod)
    assert contents(node.mount(before)) == contents(files)
    assert contents(node.mount(known)) == contents(files)
    assert contents(node.mount(always)) == contents(newer)


def test_a_claim_shows_the_model_of_its_class(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    claim = Claim("pvc-1", "mm1-" + "a" * 40, "ReadOnlyMany")
    pods = [
        node.kubelet.run(Pod(f"claimer-{n}", (Volume("model", {"model": pushed.reference}, claim=claim),)))
        for n in range(2)
    ]
    for pod in pods:
        node.kubelet.wait_running(pod)
        assert contents(node.mount(pod)) == contents(files)


def test_a_deleted_pod_leaves_nothing_but_the_cache(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    pod = node.pod("short-lived", pushed.reference)
    node.kubelet.wait_running(pod)
    node.kubelet.delete(pod)
    node.kubelet.wait_gone(pod)
    assert node.kubelet.leftovers() == []
    assert mounts.below(node.directory) == []
    assert node.leases() == []
    assert set(pushed.layers) <= node.blobs()


def test_stats_tell_the_model_s_size_and_health(node: Node, files: Path) -> None:
    pod = node.pod("reader", node.pusher.artifact("llm/tiny", "v1", push.modelpack(files)).reference)
    node.kubelet.wait_running(pod)
    answer = node.kubelet.stats(pod, pod.volumes[0])
    assert answer.usage[0].used == sum(len(data) for data in contents(files).values())
    assert not answer.volume_condition.abnormal


def test_over_https_with_an_own_ca(make_node: Callable[..., Node], tmp_path: Path, files: Path) -> None:
    with Registry(tmp_path / "secure", tls=Tls.make(tmp_path / "tls")) as registry:
        node = make_node(registry=registry)
        pod = node.pod("reader", node.pusher.artifact("llm/tiny", "v1", push.modelpack(files)).reference)
        node.kubelet.wait_running(pod)
        assert contents(node.mount(pod)) == contents(files)


def test_mounts_outlive_a_killed_driver_and_the_next_one_takes_over(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    pod = node.pod("reader", pushed.reference)
    node.kubelet.wait_running(pod)
    with (node.mount(pod) / "config.json").open("rb") as held:
        node.driver.kill()
        assert contents(node.mount(pod)) == contents(files)
        node.registry.stop()
        node.driver.start()
        assert held.read() == (files / "config.json").read_bytes()
    node.kubelet.wait_registered()
    node.kubelet.restart()
    node.kubelet.wait_running(pod)
    assert mounts.below(node.directory) == [node.mount(pod)]
    node.kubelet.delete(pod)
    node.kubelet.wait_gone(pod)
    assert node.kubelet.leftovers() == []


def test_a_kubelet_restart_needs_no_registry(node: Node, files: Path) -> None:
    pod = node.pod("reader", node.pusher.artifact("llm/tiny", "v1", push.modelpack(files)).reference)
    node.kubelet.wait_running(pod)
    node.registry.stop()
    node.kubelet.restart()
    node.kubelet.wait_running(pod)
    assert contents(node.mount(pod)) == contents(files)


def test_after_a_reboot_everything_is_published_again_without_a_registry(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    pods = [node.pod(f"pod-{n}", pushed.reference) for n in range(3)]
    for pod in pods:
        node.kubelet.wait_running(pod)
    node.kubelet.stop()
    node.driver.kill()
    node.registry.stop()
    mounts.detach_below(node.directory)  # what a reboot does to mounts
    node.driver.start()
    node.kubelet.start()
    node.kubelet.wait_registered()
    for pod in pods:
        node.kubelet.wait_running(pod)
        assert contents(node.mount(pod)) == contents(files)
    assert len(mounts.below(node.directory)) == 3


def test_with_the_registrar_sidecar_the_driver_leaves_the_kubelet_s_directory_alone(short: Path) -> None:
    with Driver(short, settings={"registration_dir": "none"}) as driver:
        assert list((driver.kubelet_root / "plugins_registry").iterdir()) == []
        assert driver.socket.exists()


def test_a_rolling_stop_ends_with_status_zero_and_leaves_the_mounts(node: Node, files: Path) -> None:
    pod = node.pod("reader", node.pusher.artifact("llm/tiny", "v1", push.modelpack(files)).reference)
    node.kubelet.wait_running(pod)
    assert node.driver.stop() == 0
    assert contents(node.mount(pod)) == contents(files)
    assert not node.driver.socket.exists()


def test_a_pod_event_of_a_bad_request_names_the_remedy(node: Node) -> None:
    pod = node.pod("typo", "registry.example.com/llm/tiny:v1", pullpolicy="Always")
    event = node.kubelet.wait_event("FailedMount", pod=pod)
    assert "unknown volume attribute 'pullpolicy'" in event.message
    assert node.kubelet.calls_to("NodePublishVolume", pod)[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert node.kubelet.state(pod, pod.volumes[0]) is State.ABSENT


def test_a_target_outside_the_kubelet_s_directories_is_refused(node: Node) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        node.driver.publish("v", node.directory / "elsewhere" / "mount", {"model": "registry.example.com/llm/tiny:v1"})
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert mounts.below(node.directory) == []
