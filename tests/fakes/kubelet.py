"""A kubelet of our own for tests: what the real one does around a CSI driver, and nothing else.

Rules read from Kubernetes 1.34 to 1.36 (`pkg/volume/csi/csi_mounter.go`, `csi_client.go`, `pkg/volume/util/types`):
parents and `vol_data.json` before the call, 2 minutes for each call, back-off from 0.5 s doubling to 122 s per volume,
one operation at a time per volume, final errors clean up and are never followed by NodeUnpublishVolume, uncertain ones
always are, directories go by rmdir alone, a restart publishes every volume of every live pod again. `scale` shortens
deadlines and back-off together.

`Kubelet.pods` and `Kubelet.secrets` stand for the API server: they outlive `stop`. Everything else is read from the
disk at `start`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, Self

import grpc

from csi.v1 import csi_pb2, csi_pb2_grpc
from tests.fakes import hunt, pods
from tests.fakes.kubelet_disk import Directories, StillMountedError
from tests.fakes.plugins import Plugin, PluginWatcher, connect, outcome, spoken
from tests.fakes.pods import Claim, Pod, Volume

__all__ = ["NOT_FINAL", "Call", "Claim", "Event", "Kubelet", "Pod", "State", "Volume"]

RPC_SECONDS = 120.0
BACKOFF_SECONDS = (0.5, 122.0)
PATIENCE_SECONDS = 130.0
"""How long a test waits for what must come: a bound for what hangs, and no measure of speed."""

NOT_FINAL = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNAVAILABLE,
    }
)
"""Codes after which the volume may still become mounted; every other one says that it won't."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something a person would see in `kubectl describe` or the kubelet's log. `pod` is a uid, empty for the node's
    own.
    """

    reason: str
    message: str
    pod: str = ""
    volume: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC, after it ended. `message` is the status message, `seconds` how long it took."""

    method: str
    volume_id: str
    target: str
    code: grpc.StatusCode
    message: str
    seconds: float


class State(Enum):
    """What the kubelet believes about a volume."""

    ABSENT = "absent"
    UNCERTAIN = "uncertain"
    MOUNTED = "mounted"


class _Pending(Protocol):
    """The part of a gRPC future that we need: `code` and `details` wait for the end and never raise."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def cancel(self) -> bool: ...


@dataclass(slots=True)
class _Work:
    """One volume of one pod, and what is known about it; changed by its own thread under the kubelet's lock."""

    pod_uid: str
    driver: str
    handle: str
    directory: Path
    volume: Volume | None
    state: State = State.ABSENT
    reconstructed: bool = False
    failures: int = 0
    operation: str = ""
    in_flight: _Pending | None = None
    thread: threading.Thread | None = None

    @property
    def target(self) -> Path:
        return self.directory / "mount"

    @property
    def name(self) -> str:
        return self.volume.name if self.volume is not None else self.directory.name


class Kubelet:
    """One node's kubelet below `root`. Start it, `run` pods, `delete` them, `stop` it, start it again; safe to use from
    several threads.

    Threads: one watches for plugins, one works on each volume. Waiting methods raise TimeoutError with the last events.
    """

    def __init__(self, root: Path, *, node: str = "node-1", scale: float = 1.0, pod_info_on_mount: bool = True) -> None:
        self.root = root
        self.node = node
        self.pods: dict[str, Pod] = {}
        self.secrets: dict[tuple[str, str], Mapping[str, str]] = {}
        self.events: list[Event] = []
        self.calls: list[Call] = []
        self.pauses: list[tuple[str, float]] = []
        """Each pause before another try: the target, and the seconds that the real kubelet would wait."""
        self._disk = Directories(root)
        self._scale = scale
        self._pod_info = pod_info_on_mount
        self._changed = threading.Condition(threading.RLock())
        self._work: dict[tuple[str, str], _Work] = {}
        self._running = False
        self._watcher: PluginWatcher | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def plugins_registry(self) -> Path:
        """Where drivers put their registration socket."""
        return self.root / "plugins_registry"

    def target(self, pod: Pod, volume: Volume) -> Path:
        """The target path of a pod's volume."""
        return self._directory(pod, volume) / "mount"

    def start(self) -> None:
        """Read what the disk has, register plugins, mount what live pods want, unmount what deleted ones left."""
        with self._changed:
            self._running = True
            self._work = {}
            self._reconstruct()
            for pod in self.pods.values():
                self._want(pod)
            for work in self._work.values():
                self._launch(work)
        self._watcher = PluginWatcher(
            self.plugins_registry, scale=self._scale, changed=self._wake, say=lambda r, m: self._record(Event(r, m))
        )
        self._watcher.start()

    def stop(self) -> None:
        """End like a killed process: calls under way are cancelled, nothing is unmounted, what was in memory is
        forgotten.
        """
        with self._changed:
            self._running = False
            threads = [work.thread for work in self._work.values() if work.thread is not None]
            for work in self._work.values():
                if work.in_flight is not None:
                    work.in_flight.cancel()
            self._changed.notify_all()
        for thread in threads:
            thread.join()
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None
        for event in self.events:
            hunt.demand_clean(event.message, f"an event {event.reason}")

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def run(self, pod: Pod) -> Pod:
        """Bind `pod` to this node."""
        with self._changed:
            self.pods[pod.uid] = pod
            if self._running:
                self._want(pod)
                for volume in pod.volumes:
                    self._launch(self._work[pod.uid, volume.spec_name])
        return pod

    def delete(self, pod: Pod) -> None:
        """Delete `pod`: its containers are gone, its volumes follow."""
        with self._changed:
            self.pods.pop(pod.uid, None)
            self._changed.notify_all()

    def wait_registered(self, driver: str = "csi.modelmount.io", timeout: float = PATIENCE_SECONDS) -> Plugin:
        """The plugin, once it is registered."""
        self.wait_until(lambda: driver in self._plugins(), f"{driver} to register", timeout)
        return self._plugins()[driver]

    def wait_running(self, pod: Pod, timeout: float = PATIENCE_SECONDS) -> None:
        """Return once every volume of `pod` is mounted."""
        self.wait_until(
            lambda: all(self.state(pod, volume) is State.MOUNTED for volume in pod.volumes),
            f"the volumes of {pod.name} to be mounted",
            timeout,
        )

    def wait_gone(self, pod: Pod, timeout: float = PATIENCE_SECONDS) -> None:
        """Return once nothing of the deleted `pod` is left on the node, its directory included."""
        self.wait_until(lambda: not (self.root / "pods" / pod.uid).exists(), f"{pod.name} to be gone", timeout)

    def wait_event(
        self, reason: str, text: str = "", *, pod: Pod | None = None, timeout: float = PATIENCE_SECONDS
    ) -> Event:
        """The first event with this reason that has `text` in its message."""

        def first() -> Event | None:
            of_pod = (e for e in self.events if pod is None or e.pod == pod.uid)
            return next((e for e in of_pod if e.reason == reason and text in e.message), None)

        self.wait_until(lambda: first() is not None, f"an event {reason} with {text!r}", timeout)
        found = first()
        if found is None:
            raise RuntimeError("events are never removed")
        return found

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = PATIENCE_SECONDS) -> None:
        """Return once `condition` holds; it is looked at whenever something happened."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                if time.monotonic() >= deadline:
                    last = "\n".join(f"  {e.reason}: {e.message}" for e in self.events[-8:])
                    raise TimeoutError(f"waited {timeout} s for {what}; the last events:\n{last}")
                self._changed.wait(0.02)

    def state(self, pod: Pod, volume: Volume) -> State:
        """What the kubelet believes now."""
        with self._changed:
            work = self._work.get((pod.uid, volume.spec_name))
            return work.state if work is not None else State.ABSENT

    def calls_to(self, method: str, pod: Pod | None = None) -> list[Call]:
        """The finished calls of one RPC, in order."""
        below = self.root / "pods" / (pod.uid if pod is not None else "")
        with self._changed:
            return [c for c in self.calls if c.method == method and Path(c.target).is_relative_to(below)]

    def messages(self, pod: Pod | None = None) -> list[str]:
        """The messages of the FailedMount events, in order: what a pod's owner reads."""
        with self._changed:
            events = [e for e in self.events if e.reason == "FailedMount"]
        return [e.message for e in events if pod is None or e.pod == pod.uid]

    def stats(self, pod: Pod, volume: Volume) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Ask the driver as the kubelet does every minute."""
        target = str(self.target(pod, volume))
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume.handle(pod.uid), volume_path=target)
        with connect(self._plugins()[volume.driver].endpoint) as channel:
            answer = csi_pb2_grpc.NodeStub(channel).NodeGetVolumeStats(request, timeout=RPC_SECONDS * self._scale)
        hunt.demand_clean(str(answer), "a volume's condition")
        return answer

    def leftovers(self) -> list[str]:
        """Directories of deleted pods and mounts below them: empty when everything is right."""
        return self._disk.leftovers(set(self.pods))

    def _plugins(self) -> dict[str, Plugin]:
        return self._watcher.registered if self._watcher is not None else {}

    def _directory(self, pod: Pod, volume: Volume) -> Path:
        return self._disk.volume(pod.uid, volume.spec_name)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _record(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def _failed(self, work: _Work, text: str, reason: str = "FailedMount") -> bool:
        verb = "MountVolume.SetUp" if reason == "FailedMount" else "UnmountVolume.TearDown"
        self._record(Event(reason, f'{verb} failed for volume "{work.name}" : {text}', work.pod_uid, work.name))
        return False

    def _become(self, work: _Work, state: State) -> None:
        with self._changed:
            work.state = state
            self._changed.notify_all()

    def _want(self, pod: Pod) -> None:
        """See to it that there is work for each volume of `pod`, found on disk or new."""
        for volume in pod.volumes:
            made = _Work(pod.uid, volume.driver, volume.handle(pod.uid), self._directory(pod, volume), volume)
            self._work.setdefault((pod.uid, volume.spec_name), made).volume = volume

    def _reconstruct(self) -> None:
        """Volumes found on disk are uncertain; what they should show, only the API server knows."""
        for found in self._disk.reconstruct():
            directory = self._disk.volume(found.pod_uid, found.name)
            work = _Work(found.pod_uid, found.driver, found.handle, directory, None, State.UNCERTAIN)
            work.reconstructed = True
            self._work[found.pod_uid, found.name] = work

    def _launch(self, work: _Work) -> None:
        if work.thread is None:
            work.thread = threading.Thread(target=self._serve, args=(work,), name=f"volume {work.name}", daemon=True)
            work.thread.start()

    def _serve(self, work: _Work) -> None:
        """Bring one volume where the API server wants it, one operation at a time, until it is gone or the kubelet
        stops.
        """
        while True:
            with self._changed:
                while self._running and work.pod_uid in self.pods and work.state is State.MOUNTED:
                    self._changed.wait(1.0)
                pod = self.pods.get(work.pod_uid)
                if not self._running:
                    return
            operation = "publish" if pod is not None else "unpublish"
            if operation != work.operation:
                work.operation, work.failures = operation, 0
            if pod is None and work.state is State.ABSENT:
                self._finish(work)
                return
            if self._publish(work, pod) if pod is not None else self._unpublish(work):
                work.failures = 0
            else:
                self._back_off(work)

    def _back_off(self, work: _Work) -> None:
        first, most = BACKOFF_SECONDS
        pause = min(first * 2**work.failures, most)
        deadline = time.monotonic() + pause * self._scale
        work.failures += 1
        with self._changed:
            self.pauses.append((str(work.target), pause))
            while self._running and (left := deadline - time.monotonic()) > 0:
                if work.operation == "publish" and work.pod_uid not in self.pods:
                    return
                self._changed.wait(left)

    def _publish(self, work: _Work, pod: Pod) -> bool:
        """NodePublishVolume with everything around it. True when the volume is mounted now."""
        volume, plugin = work.volume, self._plugins().get(work.driver)
        if volume is None:
            raise RuntimeError(f"{pod.name} has no volume {work.name}")
        if plugin is None:
            return self._failed(work, f"driver name {work.driver} not found in the list of registered CSI drivers")
        secrets = self.secrets.get((pod.namespace, volume.secret)) if volume.secret is not None else {}
        if secrets is None:
            return self._failed(work, f"fetching NodePublishSecretRef {pod.namespace}/{volume.secret} failed")
        record = pods.volume_data(self.node, work.driver, volume, work.handle)
        self._disk.prepare(work.pod_uid, work.directory.name, record)
        request = pods.publish_request(pod, volume, work.target, secrets, pod_info=self._pod_info)
        with connect(plugin.endpoint) as channel:
            try:
                csi_pb2_grpc.NodeStub(channel).NodeGetCapabilities(
                    csi_pb2.NodeGetCapabilitiesRequest(), timeout=RPC_SECONDS * self._scale
                )
            except grpc.RpcError as error:
                code, message = outcome(error)
            else:
                begin = csi_pb2_grpc.NodeStub(channel).NodePublishVolume.future
                code, message = self._call(work, lambda timeout: begin(request, timeout=timeout))
        if code is grpc.StatusCode.OK:
            work.reconstructed = False
            self._become(work, State.MOUNTED)
            return True
        if code in NOT_FINAL:
            self._become(work, State.UNCERTAIN)
        elif not work.reconstructed:
            self._clean_up(work)
            self._become(work, State.ABSENT)
        return self._failed(work, spoken(code, message))

    def _unpublish(self, work: _Work) -> bool:
        """NodeUnpublishVolume, then the directories. True when nothing is left of this volume."""
        plugin = self._plugins().get(work.driver)
        if plugin is None:
            text = f"driver name {work.driver} not found in the list of registered CSI drivers"
            return self._failed(work, text, "FailedUnmount")
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=work.handle, target_path=str(work.target))
        with connect(plugin.endpoint) as channel:
            begin = csi_pb2_grpc.NodeStub(channel).NodeUnpublishVolume.future
            code, message = self._call(work, lambda timeout: begin(request, timeout=timeout))
        if code is not grpc.StatusCode.OK:
            return self._failed(work, spoken(code, message), "FailedUnmount")
        if not self._clean_up(work):
            return False
        self._become(work, State.ABSENT)
        return True

    def _call(self, work: _Work, begin: Callable[[float], _Pending]) -> tuple[grpc.StatusCode, str]:
        """One call with the kubelet's deadline, cancelled by `stop`, recorded when it ends."""
        method = "NodePublishVolume" if work.operation == "publish" else "NodeUnpublishVolume"
        started = time.monotonic()
        pending = begin(RPC_SECONDS * self._scale)
        with self._changed:
            work.in_flight = pending
            if not self._running:
                pending.cancel()
        code, message = pending.code(), pending.details() or ""
        call = Call(method, work.handle, str(work.target), code, message, time.monotonic() - started)
        with self._changed:
            work.in_flight = None
            self.calls.append(call)
        return code, message

    def _clean_up(self, work: _Work) -> bool:
        """Remove what the kubelet made for this volume. False when something in the way should be tried again."""
        try:
            self._disk.remove_volume(work.pod_uid, work.directory.name)
        except StillMountedError as error:
            self._failed(work, str(error), "FailedCleanup")  # said once, and never looked at again
        except OSError as error:
            return self._failed(work, f"failed to remove {error.filename}: {error.strerror}", "FailedCleanup")
        return True

    def _finish(self, work: _Work) -> None:
        """The housekeeping after a deleted pod's volume."""
        with self._changed:
            self._work.pop((work.pod_uid, work.directory.name), None)
            if all(other.handle != work.handle for other in self._work.values()):
                self._disk.remove_device(work.driver, work.handle)
            if all(uid != work.pod_uid for uid, _ in self._work):
                self._disk.remove_pod(work.pod_uid)
            self._changed.notify_all()
