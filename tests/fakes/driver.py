"""The real driver as a child process below one directory: its store, its kubelet root, its sockets, its log.

`modelmount serve` reads a configuration file that this writes; what happens is seen from outside only: the CSI socket,
the JSON log, the mount table, the store's files.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import grpc

from csi.v1 import csi_pb2, csi_pb2_grpc
from tests.fakes import hunt, kubelet_disk, mounts
from tests.fakes.plugins import connect
from tests.fakes.registry import Tls

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 100.0
STOP_SECONDS = 100.0


class Host(Protocol):
    """A registry as an admin's configuration names it: `Registry`, or a `Proxy` in front of one."""

    @property
    def host(self) -> str: ...

    @property
    def tls(self) -> Tls | None: ...


class Process(Protocol):
    """What `subprocess.Popen` is, as far as a driver needs it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...


class Driver:
    """One node's driver. Use as a context manager, or `start` and `stop`; between a stop and the next start everything
    stays on disk and mounted, as on a node. One thread at a time.

    In its end all that it left is searched for planted secrets (`hunt`).

    `registries` are named in the configuration as an admin would: plain http, or their own CA. `settings` are merged
    over it, one level deep, at each start. `environment` is put over this process's own. `prefix` is a command that
    starts it, such as one that makes namespaces.
    """

    def __init__(
        self,
        directory: Path,
        registries: Iterable[Host] = (),
        *,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.kubelet_root = directory / "kubelet"
        self.socket = directory / "csi" / "csi.sock"
        self.log = directory / "driver.log"
        self.config = directory / "config.toml"
        self._registries = tuple(registries)
        self.settings = dict(settings or {})
        self._environment = dict(environment or {})
        self._prefix = tuple(prefix)
        self._process: Process | None = None
        self._output: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        mounts.detach_below(self.directory)

    @property
    def pid(self) -> int:
        """The process; raises when it doesn't run."""
        if self._process is None:
            raise RuntimeError("the driver does not run")
        return self._process.pid

    def start(self, *, failpoints: str = "", wait: bool = True) -> None:
        """Start it; with `wait`, return once it answers and has registered. `failpoints` as MODELMOUNT_FAILPOINTS."""
        if self._process is not None:
            raise RuntimeError("the driver runs already")
        for path in (self.kubelet_root / "plugins_registry", self.kubelet_root / "pods"):
            path.mkdir(parents=True, exist_ok=True)
        self.write_config()
        self._output = self.log.open("ab")
        self._process = self._spawn(self._output, failpoints)
        if wait:
            try:
                self.wait_ready()
            except RuntimeError:
                self.kill()
                raise

    def command(self, *arguments: str) -> list[str]:
        """A command line of the program with this driver's configuration, for the CLI beside it too."""
        return [sys.executable, "-m", "modelmount", arguments[0], "--config", str(self.config), *arguments[1:]]

    def run(self, *arguments: str, timeout: float = 120.0, **env: str) -> subprocess.CompletedProcess[str]:
        """The CLI beside the driver, on the same store."""
        self.write_config()
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout, env=self.environment() | env
        )
        hunt.demand_clean(done.stdout + done.stderr, f"what `modelmount {arguments[0]}` said")
        return done

    def environment(self) -> dict[str, str]:
        """This environment without settings of ours in it."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MODELMOUNT_") and k != "CSI_ENDPOINT"}
        return {**clean, "PYTHONPATH": os.pathsep.join((str(ROOT / "driver"), str(ROOT))), **self._environment}

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self._process is not None:
            self._end(signal.SIGKILL)

    def wait_exit(self, timeout: float = STOP_SECONDS) -> int:
        """Wait for a process that ends by itself; its exit status (negative: the signal)."""
        if self._process is None:
            raise RuntimeError("the driver does not run")
        status = self._process.wait(timeout)
        self._forget()
        return status

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) and start."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def lines(self) -> list[dict[str, Any]]:
        """What it logged, as parsed JSON; a line that isn't raises. One that is still being written is left out."""
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.rpartition("\n")[0].splitlines() if line.strip()]

    def publish(
        self,
        volume_id: str,
        target: Path,
        attributes: Mapping[str, str],
        secrets: Mapping[str, str] | None = None,
        *,
        timeout: float = 60.0,
    ) -> None:
        """One bare NodePublishVolume; makes the target's parent first, as the kubelet would. Raises grpc.RpcError."""
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
        capability = csi_pb2.VolumeCapability(
            mount=csi_pb2.VolumeCapability.MountVolume(),
            access_mode=csi_pb2.VolumeCapability.AccessMode(mode=mode),
        )
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume_id,
            target_path=str(target),
            volume_capability=capability,
            volume_context=attributes,
            secrets=secrets or {},
        )
        hunt.plant_volume(secrets or {}, attributes)
        with connect(str(self.socket)) as channel:
            try:
                csi_pb2_grpc.NodeStub(channel).NodePublishVolume(request, timeout=timeout)
            except grpc.RpcError as e:
                hunt.demand_clean(str(e), "an error's message")
                raise

    def unpublish(self, volume_id: str, target: Path, *, timeout: float = 60.0) -> None:
        """One bare NodeUnpublishVolume. Raises grpc.RpcError."""
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        with connect(str(self.socket)) as channel:
            csi_pb2_grpc.NodeStub(channel).NodeUnpublishVolume(request, timeout=timeout)

    def target(self, pod: str, volume: str = "model") -> Path:
        """Where a kubelet would have this pod's volume."""
        return self.kubelet_root / "pods" / pod / "volumes/kubernetes.io~csi" / volume / "mount"

    def born(self) -> int:
        """When the process started, in clock ticks since the machine did: with its pid it names one process."""
        return int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[19])

    def memory(self, field: str = "VmHWM") -> int:
        """Bytes of `VmHWM` (peak), `VmRSS` or another line of /proc/<pid>/status."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise KeyError(field)

    def write_config(self) -> None:
        """The configuration that `start` and `run` use."""
        hosts: dict[str, Any] = {}
        for registry in self._registries:
            tls = registry.tls
            hosts[registry.host] = {"plain_http": True} if tls is None else {"ca_file": str(tls.ca_file)}
        settings: dict[str, Any] = {
            "root": str(self.store),
            "endpoint": f"unix://{self.socket}",
            "kubelet_root": str(self.kubelet_root),
            "node_id": "node-1",
            "log_level": "debug",
            "registries": hosts,
            "limits": {"free_bytes": 1 << 20},
        }
        for key, value in self.settings.items():
            known = settings.get(key)
            settings[key] = known | value if isinstance(known, dict) else value
        self.directory.mkdir(parents=True, exist_ok=True)
        self.config.write_text(_toml(settings))
        if not (self.kubelet_root / "config.yaml").exists():
            kubelet_disk.write_config(self.kubelet_root)

    def wait_ready(self) -> None:
        """Return once it answers and has registered. Raises RuntimeError with its log when it ends before."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            if self.socket.exists() and self._registers() and self._ready():
                return
            time.sleep(0.01)
        raise RuntimeError(f"the driver did not start:\n{self.log.read_text()[-4000:]}")

    def _spawn(self, output: IO[bytes], failpoints: str) -> Process:
        return subprocess.Popen(
            [*self._prefix, *self.command("serve")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=self.environment() | ({"MODELMOUNT_FAILPOINTS": failpoints} if failpoints else {}),
        )

    def _registers(self) -> bool:
        if self.settings.get("registration_dir") == "none":
            return True
        return any((self.kubelet_root / "plugins_registry").iterdir())

    def _ready(self) -> bool:
        with connect(str(self.socket)) as channel:
            try:
                answer = csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=5)
            except grpc.RpcError:
                return False
            return answer.ready.value

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            raise RuntimeError("the driver does not run")
        if self._process.poll() is None:
            hunt.search_process(self.pid)
            self._hunt_metrics()
        self._process.send_signal(number)
        status = self._process.wait(STOP_SECONDS)
        self._forget()
        return status

    def _forget(self) -> None:
        self._process = None
        if self._output is not None:
            self._output.close()
            self._output = None
        self._hunt()

    def _hunt_metrics(self) -> None:
        """Of a driver that serves them at a known port and still answers."""
        address = str(self.settings.get("metrics_address", "")).rpartition(":")
        if address[2] in {"", "0"}:
            return
        try:
            connection = http.client.HTTPConnection(address[0] or "127.0.0.1", int(address[2]), timeout=5)
            connection.request("GET", "/metrics")
            hunt.demand_clean(connection.getresponse().read(), "metrics")
        except OSError:
            return  # killed, stopped or busy
        finally:
            connection.close()

    def _hunt(self) -> None:
        """Nothing that a test handed out as a secret is in what this driver wrote."""
        if self.log.exists():
            hunt.demand_clean(self.log.read_bytes(), str(self.log))
        audit = self.settings.get("audit_file")
        if audit:
            hunt.search_files(Path(audit).parent.glob(f"{Path(audit).name}*"))
        hunt.search_store(self.store)


def _toml(settings: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> str:
    """Plain values as TOML: a JSON string, number, boolean or list of them is one in TOML too."""
    values = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in settings.items() if not isinstance(v, Mapping)]
    text = "\n".join(values) + "\n"
    for key, value in settings.items():
        if isinstance(value, Mapping):
            path = (*prefix, key)
            text += f"[{'.'.join(json.dumps(part) for part in path)}]\n{_toml(value, path)}"
    return text
