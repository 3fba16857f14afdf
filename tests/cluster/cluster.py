"""One node's Kubernetes as child processes: etcd, API server, controller manager, scheduler, containerd, kubelet.

It lives in namespaces of its own (mounts, network, processes) that scripts/cluster makes: 10.96.0.1, where pods look
for the API server, is an address of that network's loopback, so no proxy of services is needed; /var/lib/kubelet and
the other directories that Kubernetes and containerd take for granted are mounts over them; and nothing is left when the
last process ends.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import trustme
import urllib3
import yaml

from tests.cluster import images
from tests.cluster.api import Api, ApiError, Object, wait
from tests.fakes.tools import tool

API_ADDRESS = "10.96.0.1"
"""The first address of the range of services: the one that the Service `kubernetes` gets."""
SERVICES = "10.96.0.0/24"
PODS = "10.88.0.0/24"
NODE = "node1"
NODE_ADDRESS = "10.77.0.1"
KUBELET_ROOT = Path("/var/lib/kubelet")
PRIVATE = (str(KUBELET_ROOT), "/var/lib/modelmount", "/var/lib/cni", "/var/log", "/run/containerd", "/run/netns")
"""Directories that become the cluster's own; scripts/cluster makes those that are missing."""
CNI_PROGRAMS = "/usr/lib/cni"
START_SECONDS = 180.0
STOP_SECONDS = 60.0
_TOKENS = {
    "admin": ("admin", "system:masters"),
    "node": (f"system:node:{NODE}", "system:nodes"),
    "manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}


class Process:
    """A child with its log; may be stopped and started again."""

    def __init__(self, name: str, command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def start(self) -> None:
        """Start it; whether it serves is to be asked elsewhere."""
        self._output = self.log.open("ab")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=self._environment,
        )

    def check(self) -> None:
        """Raises RuntimeError with the end of the log when it doesn't run."""
        if self._process is None or self._process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{self.name} has ended: {tail}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait; killed when it doesn't end by itself."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._output is not None:
            self._output.close()
            self._output = None


class Cluster:
    """Use as a context manager, in the namespaces that scripts/cluster made. `archives` are images to import."""

    def __init__(self, directory: Path, archives: Sequence[Path]) -> None:
        self.directory = directory
        self.kubeconfig = directory / "admin.kubeconfig"
        self._archives = archives
        self._runtime = directory / "containerd.sock"
        self._ca = trustme.CA()
        self._processes: dict[str, Process] = {}
        self._ca.cert_pem.write_to_path(str(directory / "ca.pem"))
        self.api = Api(f"https://{API_ADDRESS}", directory / "ca.pem", "admin-token")

    def __enter__(self) -> Self:
        try:
            self._places()
            self._network()
            self._secrets()
            self._containerd()
            self._control_plane()
            self._kubelet()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __getitem__(self, name: str) -> Process:
        return self._processes[name]

    def environment(self) -> dict[str, str]:
        """For programs that talk to the cluster: kubectl and ctr on PATH, and where it is."""
        path = f"{tool('kubernetes').parent}:{tool('helm').parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {
            "PATH": path,
            "HOME": str(self.directory),
            "KUBECONFIG": str(self.kubeconfig),
            "CONTAINERD_ADDRESS": str(self._runtime),
            "CONTAINERD_NAMESPACE": "k8s.io",
            "TERM": os.environ.get("TERM", "dumb"),
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
        """The kubelet's own metrics."""
        return self.api.call("GET", f"api/v1/nodes/{NODE}/proxy/metrics").decode()

    def restart(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop a part and start it again."""
        self._processes[name].stop(number)
        self._processes[name].start()

    def stop(self) -> None:
        """End everything, containers first."""
        kubelet = self._processes.pop("kubelet", None)
        if kubelet is not None:
            kubelet.stop()
        for process in reversed(self._processes.values()):
            process.stop()
        self._processes = {}

    def _places(self) -> None:
        for name in PRIVATE:
            place = self.directory / name.lstrip("/").replace("/", "-")
            place.mkdir()
            subprocess.run(["mount", "--bind", str(place), name], check=True)
        subprocess.run(["mount", "--make-rshared", str(KUBELET_ROOT)], check=True)

    def _network(self) -> None:
        for command in (
            "ip link set lo up",
            f"ip address add {API_ADDRESS}/32 dev lo",
            "ip link add node type veth peer name wire",
            "ip link set wire up",
            f"ip address add {NODE_ADDRESS}/24 dev node",
            "ip link set node up",
            "ip route add default dev node",
        ):
            subprocess.run(command.split(), check=True)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": False,
                    "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]},
                }
            ],
        }
        directory = self.directory / "cni"
        directory.mkdir()
        (directory / "10-pods.conflist").write_text(json.dumps(network))

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

    def _containerd(self) -> None:
        cri = "io.containerd.grpc.v1.cri"
        runtime = {"runtime_type": "io.containerd.runc.v2", "options": {"SystemdCgroup": False}}
        config: dict[str, Any] = {
            "version": 2,
            "root": str(self.directory / "containerd"),
            "state": str(self.directory / "run"),
            "grpc": {"address": str(self._runtime)},
            "ttrpc": {"address": f"{self._runtime}.ttrpc"},
            "plugins": {
                cri: {
                    "sandbox_image": images.PAUSE,
                    "restrict_oom_score_adj": True,
                    "disable_apparmor": True,
                    "cni": {"bin_dir": CNI_PROGRAMS, "conf_dir": str(self.directory / "cni")},
                    "containerd": {"default_runtime_name": "runc", "runtimes": {"runc": runtime}},
                }
            },
        }
        file = self.directory / "containerd.toml"
        file.write_text(_toml(config))
        self._start("containerd", ["/usr/bin/containerd", "--config", str(file)])
        wait("containerd answers", lambda: self._answers("ctr", "version"), START_SECONDS)
        for archive in self._archives:
            self.run("ctr", "images", "import", "--no-unpack", str(archive))

    def _control_plane(self) -> None:
        at = str(self.directory)
        etcd = "http://127.0.0.1:2379"
        self._start(
            "etcd",
            f"etcd --data-dir {at}/etcd --unsafe-no-fsync --listen-client-urls {etcd} --advertise-client-urls {etcd} "
            "--listen-peer-urls http://127.0.0.1:2380 --log-level warn".split(),
        )
        self._start(
            "kube-apiserver",
            f"kube-apiserver --etcd-servers {etcd} --bind-address {API_ADDRESS} --secure-port 443 "
            f"--advertise-address {NODE_ADDRESS} --endpoint-reconciler-type none --service-cluster-ip-range {SERVICES} "
            f"--tls-cert-file {at}/api.pem --tls-private-key-file {at}/api.key --cert-dir {at}/certs "
            f"--service-account-issuer https://kubernetes.default.svc --service-account-key-file {at}/sa.pub "
            f"--service-account-signing-key-file {at}/sa.key --token-auth-file {at}/tokens.csv "
            f"--client-ca-file {at}/ca.pem --kubelet-preferred-address-types InternalIP "
            "--authorization-mode Node,RBAC --allow-privileged --enable-admission-plugins NodeRestriction "
            "--profiling=false".split(),
        )
        wait("the API server is ready", self._ready, START_SECONDS)
        self._start(
            "kube-controller-manager",
            f"kube-controller-manager --kubeconfig {at}/manager.kubeconfig --leader-elect=false --profiling=false "
            f"--authentication-kubeconfig {at}/manager.kubeconfig --authorization-kubeconfig {at}/manager.kubeconfig "
            f"--root-ca-file {at}/ca.pem --service-account-private-key-file {at}/sa.key "
            f"--use-service-account-credentials --cert-dir {at}/certs --bind-address 127.0.0.1".split(),
        )
        self._start(
            "kube-scheduler",
            f"kube-scheduler --kubeconfig {at}/scheduler.kubeconfig --leader-elect=false --bind-address 127.0.0.1 "
            f"--authentication-kubeconfig {at}/scheduler.kubeconfig --profiling=false --cert-dir {at}/certs "
            f"--authorization-kubeconfig {at}/scheduler.kubeconfig".split(),
        )
        wait("namespace default has its account", lambda: self.api.get("ServiceAccount", "default"), START_SECONDS)

    def _kubelet(self) -> None:
        at = str(self.directory)
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{self._runtime}",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.directory.name}",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
            "maxOpenFiles": 20000,
            "maxPods": 250,
            "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
            "imageGCHighThresholdPercent": 100,
            "clusterDNS": ["10.96.0.10"],
            "resolvConf": "",
            "readOnlyPort": 0,
            "registerNode": True,
            "syncFrequency": "10s",
            "volumeStatsAggPeriod": "10s",
            "eventRecordQPS": 100,
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
        }
        # Where kubeadm has it: the driver reads there how much of the disk this kubelet wants free, which is nothing.
        file = KUBELET_ROOT / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        self._start(
            "kubelet",
            f"kubelet --config {file} --kubeconfig {at}/node.kubeconfig --hostname-override {NODE} "
            f"--node-ip {NODE_ADDRESS} --cert-dir {at}/kubelet-pki -v 2".split(),
        )
        wait("the node is ready", self.node_ready, START_SECONDS)

    def node_ready(self) -> bool:
        """Whether the API server knows the node as ready, and pods may be put there."""
        self._processes["kubelet"].check()
        node = self.api.get("Node", NODE)
        if node is None or node["spec"].get("taints"):
            return False
        return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))

    def _start(self, name: str, command: Sequence[str]) -> None:
        program, *arguments = command
        path = program if program.startswith("/") else str(tool("kubernetes").parent / program)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.directory)}
        self._processes[name] = Process(name, [path, *arguments], self.directory, environment)
        self._processes[name].start()

    def _answers(self, *command: str) -> bool:
        for process in self._processes.values():
            process.check()
        return subprocess.run(command, env=self.environment(), capture_output=True, check=False).returncode == 0

    def _ready(self) -> bool:
        for process in self._processes.values():
            process.check()
        try:
            return self.api.call("GET", "readyz") == b"ok"
        except (ApiError, urllib3.exceptions.HTTPError):
            time.sleep(0.2)
            return False


def _toml(table: Mapping[str, Any], path: Sequence[str] = ()) -> str:
    """Nested tables as TOML; strings, numbers and booleans are written alike in JSON."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, json.dumps(key))
            lines += [f"[{'.'.join(inner)}]", _toml(value, inner)]
    return "\n".join(lines)
