"""The CSI socket and the registration socket of one instance: what is served in which mode, in which order they come
and go.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from csi.v1 import csi_pb2
from modelmount import config
from modelmount.service import (
    controller,
    identity,
    interceptors,
    listener,
    methods,
    node,
    ports,
    registration,
)

log = logging.getLogger(__name__)

SPARE_WORKERS = 16
"""Threads beside those in which publishes wait: for unpublishes, stats, and for telling publishes to come again."""
INSTANT_WORKERS = 4
"""Threads for what never waits, so that health checks and the kubelet's questions are answered whatever the others do.
"""
CHECK_SECONDS = 2.0
"""How often the sockets are looked after."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the services speak for."""

    publisher: ports.Publisher
    promises: ports.Promises
    readiness: ports.Readiness
    interrupt: Callable[[], None] = lambda: None
    """Wakes publishes from whatever they wait for; called once, when they have been told to end."""
    capacity: Callable[[], int] | None = None
    """How many bytes a new model may have on this node; asked only where the settings want that told."""
    heard: Callable[[], None] = lambda: None
    """Called whenever a kubelet takes this driver into use."""
    namespace: Callable[[Mapping[str, str]], str] = lambda attributes: ""
    """Whose a volume with these attributes is."""


class Server:
    """Serves CSI by `settings` from `start` to `stop`; each is called once, by one thread.

    The caller holds the lock of the store's root: only one driver may make these sockets. The parent directory of the
    CSI socket is made, the kubelet's isn't; it is 0700 where it was made here or is named like the driver. `on_fatal`
    is called at most once, with a sentence, when this instance can no longer be reached or isn't wanted: the process
    should stop and exit non-zero. It is called from any thread and must not block.
    """

    def __init__(
        self,
        settings: config.Settings,
        rooms: Rooms,
        *,
        on_fatal: Callable[[str], None],
        observe: interceptors.Observe = interceptors.record,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self._on_fatal, self._driver_name = on_fatal, settings.driver_name
        self._check_seconds = check_seconds
        self._stopping = threading.Event()
        self._fatal = threading.Lock()
        self._watch = threading.Thread(target=self._look_after, name="sockets", daemon=True)
        self._instant = ThreadPoolExecutor(INSTANT_WORKERS, thread_name_prefix="instant")
        self._node: node.Node | None = None
        capacity = rooms.capacity if settings.kubernetes.capacity else None
        topology = {} if capacity is None else {f"{settings.driver_name}/node": settings.node_name}
        tables = {
            "Identity": identity.Identity(settings.driver_name, rooms.readiness, topology=bool(topology)).table(),
            "Controller": (),
            "Node": (),
        }
        if settings.mode != "controller":
            self._node = node.Node(
                rooms.publisher,
                node_id=settings.node_name,
                waiters=settings.publish.waiters,
                interrupt=rooms.interrupt,
                heard=rooms.heard,
                topology=topology,
                namespace=rooms.namespace,
            )
            tables["Node"] = self._node.table()
        if settings.mode != "node":
            tables["Controller"] = controller.Controller(
                rooms.promises, settings, capacity=capacity, topology=topology
            ).table()
        services: list[grpc.GenericRpcHandler] = [
            methods.service(csi_pb2.DESCRIPTOR.services_by_name[name], table, self._instant, observe)
            for name, table in tables.items()
        ]
        workers = settings.publish.waiters + SPARE_WORKERS
        self._csi = listener.Listener(settings.socket_path, services, workers=workers, name="csi")
        self._registration: registration.Registration | None = None
        if self._node is not None and settings.plugins_registry is not None:
            self._registration = registration.Registration(
                settings.plugins_registry,
                driver_name=settings.driver_name,
                endpoint=settings.registration_endpoint or str(settings.socket_path),
                csi_socket=settings.socket_path,
                on_refused=self._give_up,
                observe=observe,
            )

    def start(self) -> None:
        """Serve the CSI socket, and once it answers appear to the kubelet. Raises Precondition or Unavailable, with
        nothing left behind.
        """
        directory = self._csi.path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.name == self._driver_name:  # the driver's own, which Kubernetes makes for everybody to read
            directory.chmod(0o700)
        try:
            self._csi.start()
            if self._registration is not None:
                self._registration.start()
        except BaseException:
            self._close(0)
            raise
        self._watch.start()

    def check(self) -> None:
        """Look after the sockets once: a lost registration socket is made again, a lost CSI socket is fatal."""
        if not self._csi.is_reachable():
            self._give_up(f"the socket {self._csi.path} was removed or replaced by another process")
        elif self._registration is not None:
            self._registration.check()

    def stop(self, grace_seconds: float) -> None:
        """End in good order, within about `grace_seconds`.

        Publishes are refused (UNAVAILABLE) and waiting ones told that the driver restarts (ABORTED), while unpublishes
        go on; then the sockets go, the registration last: without it the kubelet forgets the driver, which should be
        short.
        """
        end = time.monotonic() + grace_seconds
        if self._node is not None and not self._node.drain(grace_seconds):
            log.warning("stopping with publishes that do not end")
        self._stopping.set()
        if self._watch.is_alive():
            self._watch.join()
        self._close(max(0.0, end - time.monotonic()))

    def _close(self, grace_seconds: float) -> None:
        self._csi.stop(grace_seconds)
        if self._registration is not None:
            self._registration.stop(0)
        self._instant.shutdown(wait=False, cancel_futures=True)

    def _look_after(self) -> None:
        while not self._stopping.wait(self._check_seconds):
            self.check()

    def _give_up(self, reason: str) -> None:
        if self._fatal.acquire(blocking=False):  # never released: one reason is enough
            log.error("giving up: %s", reason)
            self._on_fatal(reason)
