"""A node: containerd and a kubelet, and the directories that they and pods take for granted.

The first lives in the namespaces that scripts/cluster made. A further one is a Machine, with namespaces of its own for
mounts and processes; the network they share.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import images
from tests.cluster.api import wait
from tests.cluster.process import PATH, Process
from tests.fakes.tools import tool

KUBELET_ROOT = Path("/var/lib/kubelet")
PRIVATE = (str(KUBELET_ROOT), "/var/lib/modelmount", "/var/lib/cni", "/var/log", "/run/containerd", "/run/netns")
"""Directories that become the node's own; scripts/cluster makes those that are missing."""
NEWER = ("containerd", "containerd-shim-runc-v2", "runc", "ctr")
CNI_PROGRAMS = "/usr/lib/cni"
START_SECONDS = 180.0
ROOT = Path(__file__).resolve().parents[2]


class Node:
    """The node of that number. `cluster` is the cluster's directory, with a kubeconfig for each node.

    The first has Debian's containerd and runc, the others have those that scripts/cluster built.
    """

    def __init__(self, cluster: Path, number: int = 1) -> None:
        self._path = [] if number == 1 else [tool(name).parent for name in NEWER]
        self.name = f"node{number}"
        self.address = f"10.77.0.{number}"
        self.directory = cluster / self.name
        self.number, self._cluster = number, cluster
        self._processes: list[Process] = []

    def __getitem__(self, name: str) -> Process:
        return next(process for process in self._processes if process.name == name)

    def place(self, directory: str) -> Path:
        """What lies at one of PRIVATE on this node."""
        return self.directory / directory.lstrip("/").replace("/", "-")

    def environment(self) -> dict[str, str]:
        """For programs that talk to containerd."""
        return {"CONTAINERD_ADDRESS": f"{self.directory}/containerd.sock", "CONTAINERD_NAMESPACE": "k8s.io"}

    def begin(self, archives: Sequence[Path]) -> None:
        """Everything but the kubelet, which needs an API server. `archives` are images to import.

        What was left below /run by the node's last life is gone first, as with any machine.
        """
        self._cluster.chmod(0o711)  # a pod with users of its own has to come to where its root file system is
        self.directory.mkdir(exist_ok=True)
        for left in (self.directory / "run", self.place("/run/containerd"), self.place("/run/netns")):
            shutil.rmtree(left, ignore_errors=True)
        for name in PRIVATE:
            self.place(name).mkdir(exist_ok=True)
            subprocess.run(["mount", "--bind", str(self.place(name)), name], check=True)
        subprocess.run(["mount", "--make-rshared", str(KUBELET_ROOT)], check=True)
        subprocess.run(["ip", "address", "replace", f"{self.address}/24", "dev", "node"], check=True)
        self._network()
        self._containerd()
        for archive in archives:
            self._ctr("images", "import", "--no-unpack", str(archive))

    def kubelet(self) -> None:
        """Start it; when the node is ready, the API server knows."""
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{self.directory}/containerd.sock",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cluster.name}",
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
            "port": 10249 + self.number,
            "healthzPort": 0,
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
            f"kubelet --config {file} --kubeconfig {self._cluster}/{self.name}.kubeconfig --hostname-override "
            f"{self.name} --node-ip {self.address} --cert-dir {self.directory}/kubelet-pki -v 2".split()
        )

    def stop(self) -> None:
        """End both, the kubelet first. Containers end with the namespace of their processes."""
        while self._processes:
            self._processes.pop().stop()

    def _network(self) -> None:
        addresses = {"type": "host-local", "ranges": [[{"subnet": f"10.88.{self.number}.0/24"}]]}
        plugin = {"type": "ptp", "ipMasq": False, "ipam": {**addresses, "routes": [{"dst": "0.0.0.0/0"}]}}
        directory = self.directory / "cni"
        directory.mkdir(exist_ok=True)
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin]}
        (directory / "10-pods.conflist").write_text(json.dumps(network))

    def _containerd(self) -> None:
        cri = "io.containerd.grpc.v1.cri"
        runc = {"BinaryName": self._program("runc"), "SystemdCgroup": False}
        runtime = {"runtime_type": "io.containerd.runc.v2", "options": runc}
        config: dict[str, Any] = {
            "version": 2,
            "root": str(self.directory / "containerd"),
            "state": str(self.directory / "run"),
            "grpc": {"address": f"{self.directory}/containerd.sock"},
            "ttrpc": {"address": f"{self.directory}/containerd.sock.ttrpc"},
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
        process = self._start([self._program("containerd"), "--config", str(file)])

        def answers() -> bool:
            process.check()
            return self._ctr("version", check=False).returncode == 0

        wait("containerd answers", answers, START_SECONDS)

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=":".join((*map(str, self._path), PATH)))
        assert found is not None, f"there is no {name}; run scripts/cluster"
        return found

    def _ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, **self.environment()}
        return subprocess.run([self._program("ctr"), *arguments], env=environment, capture_output=True, check=check)

    def _start(self, command: Sequence[str]) -> Process:
        process = Process(command, self.directory, self._path)
        self._processes.append(process)
        process.start()
        return process


class Machine:
    """A further node from outside: namespaces of its own, in which this module runs as the first process. `archives`
    are images to import.
    """

    def __init__(self, node: Node, archives: Sequence[Path]) -> None:
        self.node = node
        self._archives = archives
        self._log = node.directory.parent / f"{node.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def power_on(self) -> None:
        """Start it; when the node is ready, the API server knows."""
        spaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        program = [sys.executable, "-m", __name__, str(self.node.directory.parent), str(self.node.number)]
        program += map(str, self._archives)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(["unshare", *spaces, *program], stdout=log, stderr=log, cwd=ROOT)

    def check(self) -> None:
        """Raises RuntimeError with the end of the log when it doesn't run."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.node.name} has ended: {self._log.read_text(errors='replace')[-3000:]}")

    def power_off(self) -> None:
        """All its processes are killed and its mounts are gone, at once; files stay."""
        process, self._process = self._process, None
        if process is not None:
            first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(first[0]) if first else process.pid, signal.SIGKILL)
            process.wait()  # which is when the last process there is gone


def main() -> None:
    """A further node, until it is killed. As the first process it takes up the orphans of containerd."""
    directory, number, *archives = sys.argv[1:]
    node = Node(Path(directory), int(number))
    for name in PRIVATE:  # the first node's: who looks for a mount of that name finds the lowest
        subprocess.run(["umount", "--lazy", name], check=True)
    node.begin([*map(Path, archives)])
    node.kubelet()
    while True:
        os.wait()


def _toml(table: Mapping[str, Any], path: Sequence[str] = ()) -> str:
    """Nested tables as TOML; strings, numbers and booleans are written alike in JSON."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, json.dumps(key))
            lines += [f"[{'.'.join(inner)}]", _toml(value, inner)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
