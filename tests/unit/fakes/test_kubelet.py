"""The kubelet that other tests trust, against a scripted driver on real sockets: its calls, records and clean-up."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from typing_extensions import override

from csi.registration import registration_pb2, registration_pb2_grpc
from csi.v1 import csi_pb2, csi_pb2_grpc
from tests.fakes import mounts
from tests.fakes.kubelet import NOT_FINAL, Claim, Kubelet, Pod, State, Volume

SCALE = 1 / 6
"""A publish has 20 seconds, which nobody here needs; the first back-off is 83 ms."""
Code = grpc.StatusCode


class ScriptedDriver(csi_pb2_grpc.NodeServicer, registration_pb2_grpc.RegistrationServicer):
    """Answers each publish with the next of `script` (a code, or a function to run), OK when it is empty; makes plain
    directories as targets.
    """

    def __init__(self, root: Path) -> None:
        self.script: list[Code | Callable[[csi_pb2.NodePublishVolumeRequest], None]] = []
        self.unpublish_script: list[Code] = []
        self.requests: list[csi_pb2.NodePublishVolumeRequest] = []
        self.statuses: list[registration_pb2.RegistrationStatus] = []
        self.info = registration_pb2.PluginInfo(
            type="CSIPlugin", name="csi.modelmount.io", endpoint=str(root / "csi.sock"), supported_versions=["1.0.0"]
        )
        self.keeps_target = False
        self._registration = root / "plugins_registry/csi.modelmount.io-reg.sock"
        self._registration.parent.mkdir(parents=True, exist_ok=True)
        self._csi = _server()
        csi_pb2_grpc.add_NodeServicer_to_server(self, self._csi)
        self._csi.add_insecure_port(f"unix://{root / 'csi.sock'}")
        self._csi.start()
        self._registrar: grpc.Server | None = None

    def register(self) -> None:
        self._registrar = _server()
        registration_pb2_grpc.add_RegistrationServicer_to_server(self, self._registrar)
        self._registrar.add_insecure_port(f"unix://{self._registration}")
        self._registrar.start()

    def deregister(self) -> None:
        if self._registrar is not None:
            self._registrar.stop(0).wait()
            self._registration.unlink(missing_ok=True)
            self._registrar = None

    def stop(self) -> None:
        self.deregister()
        self._csi.stop(0).wait()

    @override
    def GetInfo(self, request: Any, context: Any) -> registration_pb2.PluginInfo:
        return self.info

    @override
    def NotifyRegistrationStatus(
        self, request: registration_pb2.RegistrationStatus, context: Any
    ) -> registration_pb2.RegistrationStatusResponse:
        self.statuses.append(request)
        return registration_pb2.RegistrationStatusResponse()

    @override
    def NodeGetInfo(self, request: Any, context: Any) -> csi_pb2.NodeGetInfoResponse:
        return csi_pb2.NodeGetInfoResponse(node_id="node-1")

    @override
    def NodeGetCapabilities(self, request: Any, context: Any) -> csi_pb2.NodeGetCapabilitiesResponse:
        return csi_pb2.NodeGetCapabilitiesResponse()

    @override
    def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodePublishVolumeResponse:
        self.requests.append(request)
        step = self.script.pop(0) if self.script else Code.OK
        if callable(step):
            step(request)
        elif step is not Code.OK:
            context.abort(step, f"scripted {step.name}")
        Path(request.target_path).mkdir(exist_ok=True)
        return csi_pb2.NodePublishVolumeResponse()

    @override
    def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        step = self.unpublish_script.pop(0) if self.unpublish_script else Code.OK
        if step is not Code.OK:
            context.abort(step, f"scripted {step.name}")
        if not self.keeps_target and Path(request.target_path).exists():
            Path(request.target_path).rmdir()
        return csi_pb2.NodeUnpublishVolumeResponse()

    @override
    def NodeStageVolume(self, request: Any, context: Any) -> csi_pb2.NodeStageVolumeResponse:
        raise NotImplementedError

    @override
    def NodeUnstageVolume(self, request: Any, context: Any) -> csi_pb2.NodeUnstageVolumeResponse:
        raise NotImplementedError

    @override
    def NodeExpandVolume(self, request: Any, context: Any) -> csi_pb2.NodeExpandVolumeResponse:
        raise NotImplementedError

    @override
    def NodeGetVolumeStats(self, request: Any, context: Any) -> csi_pb2.NodeGetVolumeStatsResponse:
        path = Path(request.volume_path)
        if not path.exists():
            context.abort(Code.NOT_FOUND, "not there")
        return csi_pb2.NodeGetVolumeStatsResponse(usage=[csi_pb2.VolumeUsage(total=7)])


def _server() -> grpc.Server:
    return grpc.server(futures.ThreadPoolExecutor(8))


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("k")


@pytest.fixture
def driver(root: Path) -> Iterator[ScriptedDriver]:
    made = ScriptedDriver(root)
    yield made
    made.stop()


@pytest.fixture
def kubelet(root: Path, driver: ScriptedDriver) -> Iterator[Kubelet]:
    driver.register()
    with Kubelet(root, scale=SCALE) as made:
        made.wait_registered()
        yield made


def inline(**more: Any) -> Volume:
    return Volume("model", {"model": "registry.example.com/m:v1"}, **more)


def test_a_pod_is_mounted_and_leaves_nothing(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    pod = kubelet.run(Pod("p", (inline(),), namespace="team", service_account="sa"))
    kubelet.wait_running(pod)
    (request,) = driver.requests
    target = kubelet.target(pod, pod.volumes[0])
    assert request.target_path == str(target)
    assert target.is_relative_to(kubelet.root / "pods" / pod.uid / "volumes/kubernetes.io~csi/model")
    assert target.parent.stat().st_mode & 0o777 == 0o750
    assert request.volume_id.startswith("csi-")
    assert len(request.volume_id) == 68
    assert request.readonly
    assert request.volume_capability.access_mode.mode == csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
    assert request.volume_capability.WhichOneof("access_type") == "mount"
    assert dict(request.volume_context) == {
        "model": "registry.example.com/m:v1",
        "csi.storage.k8s.io/pod.name": "p",
        "csi.storage.k8s.io/pod.namespace": "team",
        "csi.storage.k8s.io/pod.uid": pod.uid,
        "csi.storage.k8s.io/serviceAccount.name": "sa",
        "csi.storage.k8s.io/ephemeral": "true",
    }
    record = json.loads((target.parent / "vol_data.json").read_bytes())
    assert record["volumeHandle"] == request.volume_id
    assert record["volumeLifecycleMode"] == "Ephemeral"
    assert kubelet.stats(pod, pod.volumes[0]).usage[0].total == 7
    kubelet.delete(pod)
    kubelet.wait_gone(pod)
    assert kubelet.leftovers() == []
    assert [c.code for c in kubelet.calls] == [Code.OK, Code.OK]
    assert kubelet.messages() == []


def test_the_record_is_there_before_the_driver_is_called_and_the_target_is_not(
    kubelet: Kubelet, driver: ScriptedDriver
) -> None:
    seen: list[tuple[bool, bool]] = []

    def look(request: csi_pb2.NodePublishVolumeRequest) -> None:
        target = Path(request.target_path)
        seen.append(((target.parent / "vol_data.json").exists(), target.exists()))

    driver.script = [look]
    kubelet.wait_running(kubelet.run(Pod("p", (inline(),))))
    assert seen == [(True, False)]


@pytest.mark.parametrize("code", [c for c in Code if c is not Code.OK and c not in NOT_FINAL])
def test_a_final_error_cleans_up_and_is_never_unpublished(kubelet: Kubelet, driver: ScriptedDriver, code: Code) -> None:
    driver.script = [code] * 1000
    pod = kubelet.run(Pod("p", (inline(),)))
    event = kubelet.wait_event("FailedMount", f"scripted {code.name}")
    words = "".join(part.capitalize() for part in code.name.split("_"))
    assert event.message == (
        f'MountVolume.SetUp failed for volume "model" : rpc error: code = {words} desc = scripted {code.name}'
    )
    assert kubelet.state(pod, pod.volumes[0]) is State.ABSENT
    kubelet.delete(pod)
    kubelet.wait_gone(pod)
    assert kubelet.calls_to("NodeUnpublishVolume") == []


@pytest.mark.parametrize("code", [c for c in Code if c in NOT_FINAL])
def test_an_uncertain_error_keeps_the_record_and_is_unpublished(
    kubelet: Kubelet, driver: ScriptedDriver, code: Code
) -> None:
    driver.script = [code] * 1000
    pod = kubelet.run(Pod("p", (inline(),)))
    kubelet.wait_event("FailedMount", f"scripted {code.name}")
    assert kubelet.state(pod, pod.volumes[0]) is State.UNCERTAIN
    assert (kubelet.target(pod, pod.volumes[0]).parent / "vol_data.json").exists()
    kubelet.delete(pod)
    kubelet.wait_gone(pod)
    assert len(kubelet.calls_to("NodeUnpublishVolume")) == 1


def test_the_call_has_the_scaled_deadline_and_is_made_again(root: Path, driver: ScriptedDriver) -> None:
    go_on = threading.Event()
    driver.script = [lambda request: (go_on.wait(60) and None) or None]
    driver.register()
    with Kubelet(root, scale=1 / 60) as kubelet:
        pod = kubelet.run(Pod("p", (inline(),)))
        kubelet.wait_event("FailedMount", "code = DeadlineExceeded")
        go_on.set()
        kubelet.wait_running(pod)
    codes = [call.code for call in kubelet.calls_to("NodePublishVolume", pod)]
    assert codes[0] is Code.DEADLINE_EXCEEDED
    assert codes[-1] is Code.OK


def test_operations_on_one_volume_come_one_after_the_other(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(request: csi_pb2.NodePublishVolumeRequest) -> None:
        entered.set()
        go_on.wait(0.3)

    driver.script = [wait]
    pod = kubelet.run(Pod("p", (inline(),)))
    assert entered.wait(20)
    kubelet.delete(pod)
    go_on.set()
    kubelet.wait_gone(pod)
    assert [c.method for c in kubelet.calls] == ["NodePublishVolume", "NodeUnpublishVolume"]


def test_two_volumes_of_a_pod_do_not_wait_for_each_other(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    barrier = threading.Barrier(2)
    driver.script = [lambda request: (barrier.wait(1.9) and None) or None] * 2
    pod = kubelet.run(Pod("p", (Volume("a", {}), Volume("b", {}))))
    kubelet.wait_running(pod)
    assert [c.code for c in kubelet.calls] == [Code.OK, Code.OK]


def test_a_restart_publishes_live_volumes_again_and_unpublishes_dead_ones(
    kubelet: Kubelet, driver: ScriptedDriver
) -> None:
    kept, deleted = Pod("kept", (inline(),)), Pod("deleted", (inline(),))
    for pod in (kept, deleted):
        kubelet.wait_running(kubelet.run(pod))
    kubelet.stop()
    kubelet.delete(deleted)
    kubelet.calls.clear()
    kubelet.start()
    kubelet.wait_running(kept)
    kubelet.wait_gone(deleted)
    assert sorted((c.method, c.volume_id) for c in kubelet.calls) == [
        ("NodePublishVolume", kept.volumes[0].handle(kept.uid)),
        ("NodeUnpublishVolume", deleted.volumes[0].handle(deleted.uid)),
    ]


def test_a_final_error_after_a_restart_leaves_the_volume_uncertain(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    pod = kubelet.run(Pod("p", (inline(),)))
    kubelet.wait_running(pod)
    kubelet.stop()
    driver.script = [Code.INTERNAL] * 3
    kubelet.start()
    kubelet.wait_event("FailedMount", "scripted INTERNAL", pod=pod)
    assert kubelet.target(pod, pod.volumes[0]).exists()
    kubelet.wait_running(pod)


def test_a_kubelet_that_stops_cancels_its_calls(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(request: csi_pb2.NodePublishVolumeRequest) -> None:
        entered.set()
        go_on.wait(20)

    driver.script = [wait]
    kubelet.run(Pod("p", (inline(),)))
    assert entered.wait(20)
    kubelet.stop()
    go_on.set()
    assert [c.code for c in kubelet.calls] == [Code.CANCELLED]


def test_a_claim_carries_its_handle_mode_and_options(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    claim = Claim("pv-1", "my/handle", "ReadOnlyMany", ("noatime",))
    pod = kubelet.run(Pod("p", (inline(claim=claim),)))
    kubelet.wait_running(pod)
    (request,) = driver.requests
    assert request.volume_id == "my/handle"
    assert request.target_path.endswith("/kubernetes.io~csi/pv-1/mount")
    assert request.volume_capability.access_mode.mode == csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY
    assert list(request.volume_capability.mount.mount_flags) == ["noatime"]
    assert request.volume_context["csi.storage.k8s.io/ephemeral"] == "false"
    assert len(list(kubelet.root.glob("plugins/kubernetes.io/csi/*/*/globalmount"))) == 1
    kubelet.delete(pod)
    kubelet.wait_gone(pod)
    assert list(kubelet.root.glob("plugins/kubernetes.io/csi/*/*")) == []


def test_a_secret_is_handed_over_and_a_missing_one_stops_the_call(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    pod = kubelet.run(Pod("p", (inline(secret="pull"),), namespace="team"))
    kubelet.wait_event("FailedMount", "fetching NodePublishSecretRef team/pull failed")
    assert driver.requests == []
    kubelet.secrets["team", "pull"] = {"username": "u", "password": "p"}
    kubelet.wait_running(pod)
    assert dict(driver.requests[0].secrets) == {"username": "u", "password": "p"}


def test_the_kubelets_own_keys_win_over_forged_ones(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    forged = Volume("model", {"csi.storage.k8s.io/pod.namespace": "kube-system"})
    kubelet.wait_running(kubelet.run(Pod("p", (forged,), namespace="team")))
    assert driver.requests[0].volume_context["csi.storage.k8s.io/pod.namespace"] == "team"


def test_an_unregistered_driver_gets_no_calls_and_a_registered_one_gets_them(
    kubelet: Kubelet, driver: ScriptedDriver
) -> None:
    kubelet.wait_until(lambda: len(driver.statuses) == 1, "the first notification")
    driver.deregister()
    kubelet.wait_event("PluginDeregistered")
    pod = kubelet.run(Pod("p", (inline(),)))
    kubelet.wait_event("FailedMount", "driver name csi.modelmount.io not found in the list of registered CSI drivers")
    assert driver.requests == []
    driver.register()
    kubelet.wait_running(pod)
    kubelet.wait_until(lambda: len(driver.statuses) == 2, "the second notification")
    assert [(s.plugin_registered, s.error) for s in driver.statuses] == [(True, ""), (True, "")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "DevicePlugin"}, "no handler for plugin type 'DevicePlugin'"),
        ({"endpoint": ""}, "the plugin names no endpoint"),
        ({"supported_versions": ["0.2.0"]}, "none of the versions ['0.2.0'] is supported"),
        ({"endpoint": "/nonexistent/csi.sock"}, "code = Unavailable"),
    ],
)
def test_a_plugin_that_makes_no_sense_is_told_so_and_asked_again(
    root: Path, driver: ScriptedDriver, change: dict[str, Any], words: str
) -> None:
    right = registration_pb2.PluginInfo()
    right.CopyFrom(driver.info)
    for name, value in change.items():
        driver.info.ClearField(name)  # type: ignore[arg-type]
        driver.info.MergeFrom(registration_pb2.PluginInfo(**{name: value}))
    driver.register()
    with Kubelet(root, scale=SCALE) as kubelet:
        assert words in kubelet.wait_event("RegistrationFailed").message
        driver.info.CopyFrom(right)
        kubelet.wait_registered()
    assert not driver.statuses[0].plugin_registered
    assert words in driver.statuses[0].error
    assert driver.statuses[-1].plugin_registered


def test_a_socket_whose_name_begins_with_a_dot_is_no_plugin(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    for path in kubelet.plugins_registry.iterdir():
        path.rename(path.with_name("." + path.name))
    kubelet.wait_event("PluginDeregistered")


def test_a_failed_unpublish_is_tried_until_it_works(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    driver.unpublish_script = [Code.INTERNAL, Code.ABORTED]
    pod = kubelet.run(Pod("p", (inline(),)))
    kubelet.wait_running(pod)
    kubelet.delete(pod)
    kubelet.wait_gone(pod)
    codes = [c.code for c in kubelet.calls_to("NodeUnpublishVolume", pod)]
    assert codes == [Code.INTERNAL, Code.ABORTED, Code.OK]
    assert [e.reason for e in kubelet.events if e.pod == pod.uid] == ["FailedUnmount", "FailedUnmount"]


def test_files_in_a_target_stop_the_clean_up_and_are_not_removed(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    driver.keeps_target = True
    pod = kubelet.run(Pod("p", (inline(),)))
    kubelet.wait_running(pod)
    file = kubelet.target(pod, pod.volumes[0]) / "forgotten"
    file.write_text("x")
    kubelet.delete(pod)
    kubelet.wait_event("FailedCleanup", "Directory not empty")
    assert file.exists()
    assert kubelet.leftovers() == [str(kubelet.root / "pods" / pod.uid)]
    file.unlink()
    kubelet.wait_gone(pod)


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_target_that_stays_mounted_blocks_its_directories_for_ever(kubelet: Kubelet, driver: ScriptedDriver) -> None:
    pod = kubelet.run(Pod("p", (inline(),)))
    kubelet.wait_running(pod)
    driver.keeps_target = True
    target = kubelet.target(pod, pod.volumes[0])
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,nosuid", "none", str(target)], check=True)
        assert mounts.is_mounted(target)
        assert mounts.options(target) >= {"ro", "nosuid"}
        kubelet.delete(pod)
        kubelet.wait_event("FailedCleanup", "is still mounted")
        assert str(target) in kubelet.leftovers()
        with pytest.raises(TimeoutError, match="is still mounted"):
            kubelet.wait_gone(pod, timeout=0.2)
    finally:
        mounts.detach_below(kubelet.root)
    assert not mounts.is_mounted(target)
