"""A cluster with a registry beside it and modelmount on it, installed by its chart as a platform engineer would."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import urllib3
import yaml

from tests.cluster import images
from tests.cluster.api import Object, wait
from tests.cluster.cluster import Cluster
from tests.cluster.node import KUBELET_ROOT, START_SECONDS, Node
from tests.e2e.conftest import write_model
from tests.fakes import push
from tests.fakes.proxy import Proxy
from tests.fakes.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
DRIVER = "csi.modelmount.io"
NAMESPACE = "modelmount-system"
STORE = Path("/var/lib/modelmount")
PODS_LOGS = Path("/var/log/pods")
WAIT_SECONDS = 240.0
"""Patience with anything; nothing is measured by it."""
RANGED_BYTES = 64 << 20
"""Models from here on may come in ranges."""
APART = 3
"""The number of the node that has a driver of its own (patience.py): the DaemonSet stays away from it."""
PUBLISH_SECONDS = 4.0
"""`publish.wait_seconds` here, instead of 105: so that a pull outlasts many calls in a minute."""
VANISHED_SECONDS = 5.0
"""`cache.vanished_seconds` here, instead of 600."""
READER = (
    "find -L /model -type f | sort | while read f; do sha256sum $f; done; trap 'exit 0' TERM; "
    "while true; do sleep 0.2; done"
)
"""What pods do: print the digests of what they see, and stay."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in the registry, and what a pod must see. `blobs` are those that have bytes, `size` their sum; `shown` is
    the size of the files.
    """

    reference: str
    sums: Mapping[str, str]
    blobs: frozenset[str]
    size: int
    digest: str
    shown: int

    def listing(self, mount: str = "/model") -> str:
        """What the reader prints for it."""
        return "".join(f"{value}  {mount}/{name}\n" for name, value in sorted(self.sums.items()))


def metrics(address: str) -> str:
    """What the driver whose pod has this address counts."""
    return urllib3.request("GET", f"http://{address}:9808/metrics").data.decode()


def received(address: str) -> int:
    """Bytes of blobs that this driver received since it started."""
    found = re.search(r"^modelmount_fetched_bytes_total (\S+)$", metrics(address), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


class World:
    """Use as a context manager. One thread at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        address = Node(directory).address
        self.registry = Registry(directory / "registry", address=address)
        self.private = Registry(directory / "private", address=address, users={"robot": "right"})
        self.apart = Registry(directory / "apart", address=address)
        self._stack = contextlib.ExitStack()
        self._models = 0
        self._sizes: dict[str, int] = {}
        self._by_driver: set[str] = set()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            archives = images.all_of_them()
            self.cluster = stack.enter_context(Cluster(self.directory, archives))
            stack.enter_context(self.registry)
            stack.enter_context(self.private)
            stack.enter_context(self.apart)
            self.trickle = stack.enter_context(Proxy(self.apart.port, address=self.cluster.node.address))
            self.slow = stack.enter_context(Proxy(self.registry.port, address=self.cluster.node.address))
            self.api = self.cluster.api
            labels = {"pod-security.kubernetes.io/enforce": "privileged"}
            self.api.create(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
            )
            self.helm("install")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def begin(self) -> None:
        """Before a scenario: the pods of the last one are gone; what was counted begins anew."""
        self.registry.forget()
        self.private.forget()
        self.slow.passed = 0

    def end(self) -> None:
        """After a scenario, whatever became of it: its pods go, and nothing is left on the node."""
        for deployment in self.api.all("Deployment"):
            self.api.delete("Deployment", deployment["metadata"]["name"])
        wait("no replica sets are left", lambda: not self.api.all("ReplicaSet"), WAIT_SECONDS)
        names = [pod["metadata"]["name"] for pod in self.api.all("Pod")]
        self.gone(*names)
        self.settled()

    def fetched_twice(self) -> int:
        """Bytes of blobs that registries sent since `begin` beyond each blob's size, by their own logs.

        Nothing of models that came the slow way or in ranges: there a log also counts what was on its way when the
        driver closed a connection. Scenarios with those compare `received`, the driver's own count.
        """
        return sum(count for digest, count in self._beyond().items() if digest not in self._by_driver)

    def sent_unread(self, model: Model) -> int:
        """Bytes that the registries sent of a model beyond its size: on their way when a connection was closed."""
        return sum(count for digest, count in self._beyond().items() if digest in model.blobs)

    def _beyond(self) -> Counter[str]:
        sent: Counter[tuple[str, str]] = Counter()
        for registry in (self.registry, self.private):
            for request in registry.requests():
                if request.method == "GET" and request.digest and request.status in {200, 206}:
                    sent[request.path, request.digest] += request.size
        beyond: Counter[str] = Counter()
        for (_, digest), count in sent.items():
            beyond[digest] += max(0, count - self._sizes[digest])
        return beyond

    def received(self) -> int:
        """Bytes of blobs that this driver received since it started, by its own count."""
        return received(self.driver_pod()["status"]["podIP"])

    @contextlib.contextmanager
    def slowly(self, rate: int) -> Iterator[None]:
        """Inside the block, the slow way to the registry passes so many bytes a second."""
        self.slow.rate = rate
        try:
            yield
        finally:
            self.slow.rate = None

    def values(self, **more: Any) -> Object:
        """The chart's values for this cluster: its images, its registries, and little patience in one call."""
        hosts = (self.registry.host, self.private.host, self.slow.host, self.trickle.host)
        elsewhere = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [Node(self.directory, APART).name]}
        terms = {"nodeSelectorTerms": [{"matchExpressions": [elsewhere]}]}
        affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
        image, _, tag = images.DRIVER.partition(":")
        return {
            "image": {"repository": image, "tag": tag},
            "controller": {"provisioner": {"image": images.PROVISIONER}},
            "config": {
                "registries": {host: {"plain_http": True} for host in hosts},
                "publish": {"wait_seconds": PUBLISH_SECONDS},
                "limits": {"free_bytes": 0},
                "cache": {"grace_seconds": 0, "image_roots": [], "vanished_seconds": VANISHED_SECONDS},
            },
            **more,
            "node": {"affinity": affinity, **more.get("node", {})},
        }

    def helm(self, verb: str, **values: Any) -> None:
        """`helm install` or `helm upgrade`, and wait until all pods are there and ready."""
        file = self.directory / "values.yaml"
        file.write_text(yaml.safe_dump(self.values(**values)))
        chart = str(ROOT / "deploy/helm")
        options = ("--namespace", NAMESPACE, "--values", str(file), "--wait", "--timeout", f"{WAIT_SECONDS:.0f}s")
        try:
            self.cluster.run("helm", verb, "modelmount", chart, *options)
            wait("the kubelet knows the driver", self.registered, START_SECONDS)
        except (RuntimeError, TimeoutError) as error:
            raise RuntimeError(f"{error}\n{self.said()}") from None

    def said(self) -> str:
        """What the driver's pods have to say, and what is said about them."""
        of_ours = ("kubectl", "--namespace", NAMESPACE)
        described = self.cluster.run(*of_ours, "describe", "pods")
        logs = "".join(
            path.read_text(errors="replace")[-4000:] for path in sorted(PODS_LOGS.glob(f"{NAMESPACE}_*/*/*"))
        )
        return f"{described}\n{logs}"

    def registered(self, node: str = "node1") -> bool:
        """Whether the kubelet has the driver on its node."""
        found = self.api.get("CSINode", node)
        return found is not None and any(d["name"] == DRIVER for d in found["spec"].get("drivers") or ())

    def model(
        self,
        *,
        through: str | None = None,
        private: bool = False,
        weights: int = 300_000,
        of: Registry | None = None,
    ) -> Model:
        """A new model, never the bytes of another. `through` replaces the host in its reference."""
        source = write_model(self.directory / f"models/{self._models}", weights=weights, seed=1000 + self._models)
        for config in source.rglob("config.json"):
            config.write_text(f'{{"number": {self._models}, "of": "{config.parent.name}"}}\n')
        return self.push(source, through=through, private=private, of=of)

    def push(
        self,
        source: Path,
        *,
        through: str | None = None,
        private: bool = False,
        of: Registry | None = None,
        build: Callable[[Path], push.Artifact] = push.modelpack,
    ) -> Model:
        """What lies in a directory, as a model of its own repository; `build` makes the artifact."""
        self._models += 1
        name = f"models/m{self._models}"
        registry = of or (self.private if private else self.registry)
        login = push.basic("robot", "right") if private else None
        pusher = push.Pusher(registry.host, registry.connection, authorization=login)
        pushed = pusher.artifact(name, "v1", build(source))
        manifest = json.loads(pushed.document)
        self._sizes |= {each["digest"]: each["size"] for each in (manifest["config"], *manifest["layers"])}
        if through is not None or pushed.size >= RANGED_BYTES:
            self._by_driver |= set(pushed.layers)
        measured = {path: push.measure(source / path)[0] for path in push.files_below(source)}
        sums = {path: digest.removeprefix("sha256:") for path, digest in measured.items()}
        reference = f"{through or registry.host}/{name}:v1"
        shown = sum((source / path).stat().st_size for path in measured)
        blobs = frozenset(d for d in pushed.layers if self._sizes[d])
        return Model(reference, sums, blobs, pushed.size, pushed.digest, shown)

    def pod(
        self,
        name: str,
        volumes: Mapping[str, Object] | Model,
        *,
        namespace: str = "default",
        command: str = "",
        **spec: Any,
    ) -> Object:
        """A pod whose container prints the digests of what is below /model, and stays. A Model is an inline volume."""
        sources = {"model": self.inline(volumes)} if isinstance(volumes, Model) else volumes
        mounts = [
            {"name": key, "mountPath": "/model" if len(sources) == 1 else f"/model/{key}", "readOnly": True}
            for key in sources
        ]
        container = {
            "name": "reader",
            "image": images.BUSYBOX,
            "command": ["/bin/sh", "-c", command or READER],
            "volumeMounts": mounts,
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 5,
                "containers": [container],
                "volumes": [{"name": key, **source} for key, source in sources.items()],
                **spec,
            },
        }

    def inline(self, model: Model, *, secret: str | None = None, **attributes: str) -> Object:
        """The source of an inline volume."""
        csi: Object = {"driver": DRIVER, "readOnly": True, "volumeAttributes": {"model": model.reference, **attributes}}
        if secret is not None:
            csi["nodePublishSecretRef"] = {"name": secret}
        return {"csi": csi}

    def running(self, name: str, namespace: str = "default") -> Object:
        """Wait until the pod's containers run; the pod as it is then."""

        def look() -> Object | None:
            pod = self.api.get("Pod", name, namespace)
            states = (pod or {}).get("status", {}).get("containerStatuses", ())
            return pod if states and all(s["ready"] for s in states) else None

        try:
            found = wait(f"pod {name} runs", look, WAIT_SECONDS)
        except TimeoutError as error:
            raise TimeoutError(
                f"{error}\n{self.cluster.run('kubectl', '-n', namespace, 'describe', 'pod', name)}"
            ) from None
        assert found is not None
        return found

    def printed(self, name: str, lines: int, namespace: str = "default") -> str:
        """What the pod printed, once it is so many lines."""
        return wait(
            f"pod {name} printed {lines} lines",
            lambda: text if (text := self.api.log(name, namespace)).count("\n") >= lines else "",
            WAIT_SECONDS,
        )

    def gone(self, *names: str, namespace: str = "default", grace: int | None = None) -> None:
        """Delete pods, and wait until they are gone."""
        for name in names:
            self.api.delete("Pod", name, namespace, grace=grace)
        for name in names:
            wait(f"pod {name} is gone", functools.partial(self._absent, name, namespace), WAIT_SECONDS)

    def _absent(self, name: str, namespace: str) -> bool:
        return self.api.get("Pod", name, namespace) is None

    def driver_pod(self) -> Object:
        """The only pod of the DaemonSet that isn't on its way out."""

        def look() -> Object | None:
            pods = self.api.all("Pod", NAMESPACE, **{"app.kubernetes.io/component": "node"})
            alive = [p for p in pods if "deletionTimestamp" not in p["metadata"]]
            return alive[0] if len(alive) == 1 else None

        found = wait("one driver pod", look, WAIT_SECONDS)
        assert found is not None
        return found

    def driver_process(self) -> int:
        """The process of the first node's driver; 0 while there is none."""
        for directory in Path("/proc").iterdir():
            if directory.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (directory / "cmdline").read_bytes().split(b"\0")
                    variables = (directory / "environ").read_bytes().split(b"\0")
                    if b"serve" in words and {b"MODELMOUNT_MODE=node", b"MODELMOUNT_NODE_ID=node1"} <= set(variables):
                        return int(directory.name)
        return 0

    def left(self) -> list[str]:
        """What pods left behind on the node: mounts of models, leases. Empty when no pod has a model.

        Mounts elsewhere are another test's, that ran beside us when this cluster's namespace was made.
        """
        mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        below = f"{KUBELET_ROOT}/pods/"
        found = [each for each in mounts if each.startswith(below) and "/volumes/kubernetes.io~csi/" in each]
        return found + [str(path) for path in (STORE / "volumes").glob("*.json")]

    def settled(self) -> None:
        """Wait until nothing is left of pods. The kubelet unmounts a little after a pod is gone."""
        wait("nothing is left", lambda: not self.left(), WAIT_SECONDS)

    def fetched(self, model: Model) -> dict[str, int]:
        """How often each blob of the model was got from the registries."""
        gets = self.registry.blob_gets() + self.private.blob_gets()
        return {digest: gets[digest] for digest in model.blobs if gets[digest]}

    def warnings(self, pod: Object) -> list[str]:
        """The texts of the pod's warnings."""
        metadata = pod["metadata"]
        events = self.api.events(metadata["uid"], metadata.get("namespace", "default"))
        return [f"{e['reason']}: {e['message']}" for e in events if e["type"] == "Warning"]

    def mount_seconds(self) -> tuple[float, float]:
        """Seconds and number of all mounts of our volumes so far, as the kubelet measured them."""
        found: dict[str, float] = {}
        for line in self.cluster.metrics().splitlines():
            match = re.match(r"storage_operation_duration_seconds_(sum|count)\{(.*)\} (\S+)$", line)
            if (
                match
                and 'operation_name="volume_mount"' in match[2]
                and DRIVER in match[2]
                and 'status="success"' in match[2]
            ):
                found[match[1]] = found.get(match[1], 0.0) + float(match[3])
        return found.get("sum", 0.0), found.get("count", 0.0)

    def example(self, model: Model) -> Path:
        """A file with a pod of this model, for kubectl apply."""
        file = self.directory / "example.yaml"
        file.write_text(yaml.safe_dump(self.pod("example", model)))
        return file
