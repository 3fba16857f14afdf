"""A pull that outlasts many calls of a kubelet, beside all other scenarios: those pauses take minutes.

It has what nobody else restarts or counts: a node, a driver, a registry, and the slow way to that.
"""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import urllib3

from tests.cluster.api import Object, wait
from tests.cluster.node import KUBELET_ROOT, START_SECONDS, Machine, Node
from tests.cluster.world import APART, NAMESPACE, WAIT_SECONDS, World, metrics, received

CALLS = 10
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 122.0
"""What a kubelet waits after a volume's first failed call, and twice as long after each further one, up to 2m2s."""
PAUSES = [min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS) for number in range(CALLS)]
"""Those after the first ten: the last one is before the call that finds the model there."""
RATE = 15_000
"""Bytes a second: such a connection is never silent for long, and would take ten times as long as the calls."""
WEIGHTS = 30_000_000
LOOK_SECONDS = 1.0
POD = PLACE = "patient"
DRIVER_POD = "driver-apart"


def pauses(log: Path, pod: Object) -> list[float]:
    """What a kubelet waited between its calls for the pod's volume, in seconds, as its log tells them."""
    lines = "\n".join(line for line in log.read_text(errors="replace").splitlines() if pod["metadata"]["uid"] in line)
    found = re.findall(r"until (\S+ \S+) .*?\(durationBeforeRetry (?:(\d+)m)?([\d.]+)(m?s)\)", lines)
    told = {until: 60 * int(m or 0) + float(n) / (1000 if unit == "ms" else 1) for until, m, n, unit in found}
    return list(told.values())


class Patience:
    """Use as a context manager: a pod waits for its model from then on. `end` may come before the block does."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._machine = Machine(Node(world.directory, APART), world.cluster.archives)
        self._stack = contextlib.ExitStack()
        self._watch = threading.Thread(target=self._hurry, name="patience", daemon=True)
        self._over = threading.Event()
        self._address = ""
        self.slowly = 0
        """Bytes that had come when the tenth call was answered; 0 until then."""
        self.model = world.model(of=world.apart, through=world.trickle.host, weights=WEIGHTS)

    def __enter__(self) -> Self:
        world, name = self._world, self._machine.node.name
        world.trickle.rate = RATE
        with contextlib.ExitStack() as stack:
            stack.enter_context(world.cluster.with_another(self._machine))
            world.cluster.run("kubectl", "cordon", name)  # scenarios that let the scheduler choose know of two nodes
            world.api.create(self._driver())
            wait("the kubelet apart knows the driver", lambda: world.registered(name), START_SECONDS)
            world.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}})
            wait("it has its account", lambda: world.api.get("ServiceAccount", "default", PLACE), WAIT_SECONDS)
            world.api.create(world.pod(POD, self.model, namespace=PLACE, nodeName=name))
            self._address = wait("the API server knows where the driver is", self._place, WAIT_SECONDS)
            self._watch.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """The node goes."""
        self._over.set()
        self._stack.close()

    def pod(self) -> Object:
        """As it is now."""
        found = self._world.api.get("Pod", POD, PLACE)
        assert found is not None
        return found

    def calls(self) -> dict[str, int]:
        """The kubelet's calls so far by what the driver answered, by the driver's own count."""
        found = re.findall(
            r'^modelmount_rpc_total\{code="(\w+)",method="\S*NodePublishVolume"\} (\S+)$',
            metrics(self._address),
            re.MULTILINE,
        )
        return {code: int(float(count)) for code, count in found}

    def received(self) -> int:
        """Bytes of blobs that the driver received, by its own count."""
        return received(self._address)

    def pauses(self) -> list[float]:
        """Seconds between the kubelet's calls, as its log tells them."""
        return pauses(self._machine.node.directory / "kubelet.log", self.pod())

    def left(self) -> list[Path]:
        """Directories of volumes on the node."""
        return [*(self._machine.node.place(str(KUBELET_ROOT)) / "pods").glob("*/volumes/kubernetes.io~csi/*")]

    def _hurry(self) -> None:
        """Once ten calls came and went the registry is quick, so that the next call, minutes later, finds the model."""
        while not self._over.wait(LOOK_SECONDS):
            with contextlib.suppress(urllib3.exceptions.HTTPError):  # who waits for `slowly` sees that it stays 0
                if self.calls().get("ABORTED", 0) >= CALLS:
                    self.slowly = self.received()
                    self._world.trickle.rate = None
                    return

    def _place(self) -> str:
        found = self._world.api.get("Pod", DRIVER_POD, NAMESPACE)
        return str((found or {}).get("status", {}).get("podIP", ""))

    def _driver(self) -> Object:
        """A pod as the DaemonSet makes it, and nobody's: no upgrade replaces it."""
        found = self._world.api.get("DaemonSet", "modelmount-node", NAMESPACE)
        assert found is not None
        spec = {key: value for key, value in found["spec"]["template"]["spec"].items() if key != "affinity"}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": DRIVER_POD, "namespace": NAMESPACE},
            "spec": {**spec, "nodeName": self._machine.node.name},
        }
