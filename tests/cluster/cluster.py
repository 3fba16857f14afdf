"""Kubernetes as child processes: etcd, API server, controller manager, scheduler, and a node.

It lives in namespaces of its own (mounts, network, processes) that scripts/cluster makes: 10.96.0.1, where pods look
for the API server, is an address of that network's loopback, so no proxy of services is needed; /var/lib/kubelet and
the other directories that Kubernetes and containerd take for granted are mounts over them; and nothing is left when the
last process ends.
"""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme
import urllib3
import yaml

from tests.cluster.api import Api, ApiError, Object, wait
from tests.cluster.node import START_SECONDS, Machine, Node
from tests.cluster.process import PATH, Process
from tests.fakes.tools import tool

API_ADDRESS = "10.96.0.1"
"""The first address of the range of services: the one that the Service `kubernetes` gets."""
SERVICES = "10.96.0.0/24"
_TOKENS = {
    "admin": ("admin", "system:masters"),
    "node1": ("system:node:node1", "system:nodes"),
    "node2": ("system:node:node2", "system:nodes"),
    "node3": ("system:node:node3", "system:nodes"),
    "manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}


class Cluster:
    """Use as a context manager, in the namespaces that scripts/cluster made. `archives` are images to import."""

    def __init__(self, directory: Path, archives: Sequence[Path]) -> None:
        self.directory = directory
        self.kubeconfig = directory / "admin.kubeconfig"
        self.node = Node(directory)
        self.archives = archives
        self._ca = trustme.CA()
        self._processes: list[Process] = []
        self._ca.cert_pem.write_to_path(str(directory / "ca.pem"))
        self.api = Api(f"https://{API_ADDRESS}", directory / "ca.pem", "admin-token")

    def __enter__(self) -> Self:
        try:
            self._network()
            self._secrets()
            self.node.begin(self.archives)
            self._control_plane()
            self.node.kubelet()
            wait("the node is ready", self._node_ready, START_SECONDS)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        """For programs that talk to the cluster: kubectl and ctr on PATH, and where it is."""
        path = f"{tool('kubernetes').parent}:{tool('helm').parent}:{PATH}"
        return {
            "PATH": path,
            "HOME": str(self.directory),
            "KUBECONFIG": str(self.kubeconfig),
            "TERM": os.environ.get("TERM", "dumb"),
            **self.node.environment(),
        }

    def run(self, *command: str, timeout: float = 300.0) -> str:
        """A program with that environment; its output. Raises CalledProcessError with what it said."""
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def metrics(self) -> str:
        """The first node's kubelet's own metrics."""
        return self.api.call("GET", f"api/v1/nodes/{self.node.name}/proxy/metrics").decode()

    @contextlib.contextmanager
    def with_another(self, machine: Machine) -> Iterator[None]:
        """Inside the block this node is there, too; of its pods nothing is left afterwards."""
        name = machine.node.name
        try:
            machine.power_on()
            self.wait_for(machine)
            yield
        finally:
            machine.power_off()
            self.api.delete("Node", name)
            self.run("kubectl", "delete", "pods", "-A", f"--field-selector=spec.nodeName={name}", "--force")

    def wait_for(self, machine: Machine) -> None:
        """Until the API server says that it is ready."""

        def ready() -> bool:
            machine.check()
            return self.ready(machine.node.name)

        wait(f"{machine.node.name} is ready", ready, START_SECONDS)

    def stop(self) -> None:
        """End everything, the node first."""
        self.node.stop()
        while self._processes:
            self._processes.pop().stop()

    def ready(self, node: str) -> bool:
        """Whether the API server knows the node as ready, and pods may be put there."""
        found = self.api.get("Node", node)
        if found is None or found["spec"].get("taints"):
            return False
        return any(c["type"] == "Ready" and c["status"] == "True" for c in found["status"].get("conditions", ()))

    def _network(self) -> None:
        for command in (
            "ip link set lo up",
            f"ip address add {API_ADDRESS}/32 dev lo",
            "ip link add node type veth peer name wire",
            "ip link set wire up",
            "ip link set node up",
            "ip route add default dev node",
        ):
            subprocess.run(command.split(), check=True)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def _secrets(self) -> None:
        leaf = self._ca.issue_cert(API_ADDRESS, "127.0.0.1", "localhost", "kubernetes.default.svc")
        leaf.cert_chain_pems[0].write_to_path(str(self.directory / "api.pem"))
        leaf.private_key_pem.write_to_path(str(self.directory / "api.key"))
        for command in (["genrsa", "-out", "sa.key", "2048"], ["rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub"]):
            subprocess.run(["openssl", *command], cwd=self.directory, check=True, capture_output=True)
        with (self.directory / "tokens.csv").open("w", newline="") as out:
            for number, (name, (user, group)) in enumerate(_TOKENS.items()):
                csv.writer(out).writerow([f"{name}-token", user, number, group])
        for name in _TOKENS:
            (self.directory / f"{name}.kubeconfig").write_text(yaml.safe_dump(self._config_of(name)))

    def _config_of(self, name: str) -> Object:
        server = {"server": f"https://{API_ADDRESS}", "certificate-authority": str(self.directory / "ca.pem")}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": server}],
            "users": [{"name": name, "user": {"token": f"{name}-token"}}],
            "contexts": [{"name": name, "context": {"cluster": "e2e", "user": name}}],
            "current-context": name,
        }

    def _control_plane(self) -> None:
        at = str(self.directory)
        etcd = "http://127.0.0.1:2379"
        self._start(
            f"etcd --data-dir {at}/etcd --unsafe-no-fsync --listen-client-urls {etcd} --advertise-client-urls {etcd} "
            "--listen-peer-urls http://127.0.0.1:2380 --log-level warn"
        )
        self._start(
            f"kube-apiserver --etcd-servers {etcd} --bind-address {API_ADDRESS} --secure-port 443 "
            f"--advertise-address {self.node.address} --endpoint-reconciler-type none "
            f"--service-cluster-ip-range {SERVICES} "
            f"--tls-cert-file {at}/api.pem --tls-private-key-file {at}/api.key --cert-dir {at}/certs "
            f"--service-account-issuer https://kubernetes.default.svc --service-account-key-file {at}/sa.pub "
            f"--service-account-signing-key-file {at}/sa.key --token-auth-file {at}/tokens.csv "
            f"--client-ca-file {at}/ca.pem --kubelet-preferred-address-types InternalIP "
            "--authorization-mode Node,RBAC --allow-privileged --enable-admission-plugins NodeRestriction "
            "--profiling=false"
        )
        wait("the API server is ready", self._ready, START_SECONDS)
        self._start(
            f"kube-controller-manager --kubeconfig {at}/manager.kubeconfig --leader-elect=false --profiling=false "
            f"--authentication-kubeconfig {at}/manager.kubeconfig --authorization-kubeconfig {at}/manager.kubeconfig "
            f"--root-ca-file {at}/ca.pem --service-account-private-key-file {at}/sa.key "
            f"--use-service-account-credentials --cert-dir {at}/certs --bind-address 127.0.0.1"
        )
        self._start(
            f"kube-scheduler --kubeconfig {at}/scheduler.kubeconfig --leader-elect=false --bind-address 127.0.0.1 "
            f"--authentication-kubeconfig {at}/scheduler.kubeconfig --profiling=false --cert-dir {at}/certs "
            f"--authorization-kubeconfig {at}/scheduler.kubeconfig"
        )
        wait("namespace default has its account", lambda: self.api.get("ServiceAccount", "default"), START_SECONDS)

    def _start(self, command: str) -> None:
        self._processes.append(Process(command.split(), self.directory))
        self._processes[-1].start()

    def _node_ready(self) -> bool:
        self.node["kubelet"].check()
        return self.ready(self.node.name)

    def _ready(self) -> bool:
        for process in self._processes:
            process.check()
        try:
            return self.api.call("GET", "readyz") == b"ok"
        except (ApiError, urllib3.exceptions.HTTPError):
            time.sleep(0.2)
            return False
