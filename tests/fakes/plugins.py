"""The part of a kubelet that finds CSI drivers: watches `plugins_registry`, asks, validates, notifies.

Rules read from Kubernetes 1.34 to 1.36, `pkg/kubelet/pluginmanager` and `pkg/volume/csi`: names that begin with a dot
are skipped, GetInfo has one second, a failed registration is tried again with back-off, a socket that goes away takes
its driver with it at once.
"""

from __future__ import annotations

import stat
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc

from csi.registration import registration_pb2, registration_pb2_grpc
from csi.v1 import csi_pb2, csi_pb2_grpc

GET_INFO_SECONDS = 1.0
NOTIFY_SECONDS = 5.0
NODE_INFO_SECONDS = 120.0
BACKOFF_SECONDS = (0.5, 122.0)
POLL_SECONDS = 0.02
MAX_NODE_ID_BYTES = 256


@dataclass(frozen=True, slots=True)
class Plugin:
    """A registered driver: `endpoint` is the path of its CSI socket as the kubelet sees it."""

    name: str
    endpoint: str
    socket: Path
    node_id: str
    max_volumes: int


class RejectedError(Exception):
    """The kubelet would refuse this plugin; the message goes into NotifyRegistrationStatus."""


@dataclass(slots=True)
class _Seen:
    identity: tuple[int, int]
    plugin: Plugin | None = None
    failures: int = 0
    next_try: float = 0.0


class PluginWatcher:
    """Keeps `registered` in step with the sockets below `directory` while it runs; one thread of its own.

    `scale` shortens the back-off, not the deadlines. `changed` is called, without locks held, after each change; `say`
    gets one line for each thing that happened.
    """

    def __init__(
        self, directory: Path, *, scale: float, changed: Callable[[], None], say: Callable[[str, str], None]
    ) -> None:
        self.directory = directory
        self._scale = scale
        self._changed = changed
        self._say = say
        self._seen: dict[Path, _Seen] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plugin-watcher", daemon=True)

    def start(self) -> None:
        """Begin to watch; sockets that exist already are found."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, and wait for the registration under way."""
        self._stopping.set()
        self._thread.join()

    @property
    def registered(self) -> dict[str, Plugin]:
        """The drivers by name, now."""
        with self._lock:
            return {s.plugin.name: s.plugin for s in self._seen.values() if s.plugin is not None}

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            present = dict(self._sockets())
            for path in self._seen.keys() - present.keys():
                self._forget(path, "its socket is gone")
            for path, identity in present.items():
                seen = self._seen.get(path)
                if seen is not None and seen.identity != identity:
                    self._forget(path, "its socket was made anew")
                    seen = None
                if seen is None:
                    seen = _Seen(identity)
                    with self._lock:
                        self._seen[path] = seen
                if seen.plugin is None and time.monotonic() >= seen.next_try:
                    self._try(path, seen)

    def _sockets(self) -> list[tuple[Path, tuple[int, int]]]:
        found = []
        for path in sorted(self.directory.rglob("*")):
            if any(part.startswith(".") for part in path.relative_to(self.directory).parts):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISSOCK(status.st_mode):
                found.append((path, (status.st_ino, status.st_ctime_ns)))
        return found

    def _forget(self, path: Path, why: str) -> None:
        with self._lock:
            seen = self._seen.pop(path)
        if seen.plugin is not None:
            self._say("PluginDeregistered", f"{seen.plugin.name}: {why}")
            self._changed()

    def _try(self, path: Path, seen: _Seen) -> None:
        with connect(str(path), authority=urllib.parse.quote(str(path), safe="")) as channel:
            stub = registration_pb2_grpc.RegistrationStub(channel)
            try:
                info = stub.GetInfo(registration_pb2.InfoRequest(), timeout=GET_INFO_SECONDS)
            except grpc.RpcError as error:
                self._retry(seen, f"GetInfo at {path.name}: {spoken(*outcome(error))}")
                return
            try:
                plugin = self._validated(path, info)
            except (RejectedError, grpc.RpcError) as error:
                text = spoken(*outcome(error)) if isinstance(error, grpc.RpcError) else str(error)
                self._notify(stub, ok=False, error=text)
                self._retry(seen, f"{info.name or path.name}: {text}")
                return
            with self._lock:
                seen.plugin, seen.failures = plugin, 0
            self._say("PluginRegistered", f"{plugin.name} at {plugin.endpoint}, node id {plugin.node_id}")
            self._notify(stub, ok=True, error="")
        self._changed()

    def _validated(self, path: Path, info: registration_pb2.PluginInfo) -> Plugin:
        if info.type != "CSIPlugin":
            raise RejectedError(f"no handler for plugin type {info.type!r}")
        if not info.endpoint:
            raise RejectedError("the plugin names no endpoint")
        if not any(version.split(".")[0] in {"1", "v1"} for version in info.supported_versions):
            raise RejectedError(f"none of the versions {list(info.supported_versions)} is supported")
        with connect(info.endpoint) as channel:
            node = csi_pb2_grpc.NodeStub(channel).NodeGetInfo(
                csi_pb2.NodeGetInfoRequest(), timeout=NODE_INFO_SECONDS * self._scale
            )
        if not node.node_id or len(node.node_id.encode()) > MAX_NODE_ID_BYTES or node.max_volumes_per_node < 0:
            raise RejectedError(f"NodeGetInfo answers node id {node.node_id!r}, limit {node.max_volumes_per_node}")
        return Plugin(info.name, info.endpoint, path, node.node_id, node.max_volumes_per_node)

    def _notify(self, stub: registration_pb2_grpc.RegistrationStub, *, ok: bool, error: str) -> None:
        status = registration_pb2.RegistrationStatus(plugin_registered=ok, error=error)
        try:
            stub.NotifyRegistrationStatus(status, timeout=NOTIFY_SECONDS)
        except grpc.RpcError as e:
            self._say("NotifyFailed", spoken(*outcome(e)))

    def _retry(self, seen: _Seen, why: str) -> None:
        first, most = BACKOFF_SECONDS
        seen.next_try = time.monotonic() + min(first * 2**seen.failures, most) * self._scale
        seen.failures += 1
        self._say("RegistrationFailed", why)


def connect(endpoint: str, *, authority: str = "localhost") -> grpc.Channel:
    """A connection of its own to a unix socket, with the authority the kubelet sends to CSI drivers."""
    options: list[tuple[str, object]] = [("grpc.default_authority", authority), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(f"unix://{endpoint.removeprefix('unix://')}", options=options)


def spoken(code: grpc.StatusCode, details: str) -> str:
    """An error as Go's gRPC library prints it, which is what ends up in events."""
    return f"rpc error: code = {''.join(part.capitalize() for part in code.name.split('_'))} desc = {details}"


def outcome(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Code and message of a failed call."""
    call = cast(grpc.Call, error)  # the errors that stubs raise are both; their type hints can't say so
    return call.code(), call.details() or ""
