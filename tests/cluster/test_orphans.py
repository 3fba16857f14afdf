"""Pods that go while the driver is away, and mounts that the kubelet has lost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.v1 import csi_pb2, csi_pb2_grpc
from tests.cluster.api import Object, wait
from tests.cluster.node import KUBELET_ROOT, START_SECONDS
from tests.cluster.test_volumes import sees
from tests.cluster.world import DRIVER, NAMESPACE, STORE, WAIT_SECONDS, World
from tests.fakes.plugins import connect

pytestmark = pytest.mark.timeout(900)


@contextlib.contextmanager
def away(world: World) -> Iterator[None]:
    """Inside the block there is no driver on the node; it comes back at the end, which this doesn't wait for."""
    _drivers_only_where(world, "yes")
    try:
        wait("no driver runs", lambda: world.driver_process() == 0, WAIT_SECONDS)
        yield
    finally:
        _drivers_only_where(world, None)


def _drivers_only_where(world: World, nowhere: str | None) -> None:
    change = {"spec": {"template": {"spec": {"nodeSelector": {"nowhere": nowhere}}}}}
    world.api.patch("DaemonSet", "modelmount-node", change, NAMESPACE)


def place(pod: Object) -> Path:
    """What the kubelet has of a pod on the node."""
    uid: str = pod["metadata"]["uid"]
    return KUBELET_ROOT / "pods" / uid


def volume(pod: Object) -> Path:
    """What it has of the pod's model: its record, and the mount."""
    return place(pod) / "volumes/kubernetes.io~csi/model"


def mounted(pod: Object) -> bool:
    """Whether the node shows the pod's model."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return str(volume(pod) / "mount") in {line.split(" ")[4] for line in lines}


def lease(pod: Object) -> Object | None:
    """The driver's record of the pod's model."""
    for path in (STORE / "volumes").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # it ends right now
            found: Object = json.loads(path.read_bytes())
            if found["pod_uid"] == pod["metadata"]["uid"]:
                return found
    return None


def test_a_driver_pod_that_is_gone_for_a_while(world: World) -> None:
    model = world.model()
    world.api.create(world.pod("bereft", model))
    sees(world, "bereft", model)
    with away(world):
        world.api.delete("Pod", "bereft")
        assert world.api.get("Pod", "bereft") is not None
    world.gone("bereft")
    world.settled()


def test_orphaned_mounts_are_swept(world: World) -> None:
    """The kubelet was away, too, and two pods are gone for good. Of one its record is lost, so that it can't unpublish:
    the driver unmounts that by itself. The lease stays, for from inside a pod nobody can tell that no container has the
    model any more.
    """
    model = world.model()
    for name in ("known", "forgotten", "living"):
        world.api.create(world.pod(name, model))
        sees(world, name, model)
    known, forgotten, living = (world.running(name) for name in ("known", "forgotten", "living"))
    kubelet = world.cluster.node["kubelet"]
    with away(world):
        kubelet.stop()
        try:
            world.gone("known", "forgotten", grace=0)
            (volume(forgotten) / "vol_data.json").unlink()
        finally:
            kubelet.start()

        def given_up() -> bool:
            text = "could not be reconstructed"
            lines = kubelet.log.read_text(errors="replace").splitlines()
            return any(text in line and forgotten["metadata"]["uid"] in line for line in lines)

        wait("the kubelet gives up the mount without a record", given_up, START_SECONDS)
        assert [mounted(pod) for pod in (known, forgotten, living)] == [True, True, True]
    wait("two are unmounted", lambda: not mounted(known) and not mounted(forgotten), WAIT_SECONDS)
    wait("two have no directory", lambda: not place(known).exists() and not place(forgotten).exists(), WAIT_SECONDS)
    assert lease(known) is None
    left = lease(forgotten)
    assert left is not None

    def said(text: str) -> bool:
        return text in world.api.log(world.driver_pod()["metadata"]["name"], NAMESPACE)

    wait("the driver says what it did", lambda: said("the kubelet has no record of a mount any more"), WAIT_SECONDS)
    wait("the driver says what stays", lambda: said("containers can't be seen from here (hostPID)"), WAIT_SECONDS)
    with connect(str(KUBELET_ROOT / "plugins" / DRIVER / "csi.sock")) as channel:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=left["volume_id"], target_path=left["target"])
        csi_pb2_grpc.NodeStub(channel).NodeUnpublishVolume(request, timeout=WAIT_SECONDS)
    assert lease(forgotten) is None

    assert mounted(living)
    was, now = (pod["status"]["containerStatuses"][0]["containerID"] for pod in (living, world.running("living")))
    assert was == now, "the container was replaced"
