"""The daemon: one process from its first log line to its exit status.

Order is this room's rule. Going up: signals, the rights it needs, the store, the lock on its root, metrics and health,
recovery, and only then sockets; whoever is served is served from a store that is in order, and by nobody else. Going
down: no new publishes, waiting ones are told to come again and woken from what they wait for, sockets, pulls, the lock
last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import modelmount
from modelmount import config, telemetry, wiring
from modelmount.cache import ground
from modelmount.cache.capacity import Capacity
from modelmount.cache.scrub import Scrubber
from modelmount.cache.upkeep import Upkeep
from modelmount.content.store import Store
from modelmount.daemon.ending import Ending
from modelmount.daemon.endpoint import Endpoint
from modelmount.errors import Cancelled, Internal, ModelMountError, Precondition
from modelmount.service import ports, server
from modelmount.system import host, mount, privilege, process
from modelmount.system.lock import FileLock, Held, LockCancelled, LockTimeout
from modelmount.volumes import recovery
from modelmount.volumes.volume import pod_namespace

if TYPE_CHECKING:
    from modelmount.kube.api import Api

log = logging.getLogger(__name__)

GRACE_SECONDS = 20.0
"""How long publishes and calls under way may take to end. Kubernetes gives a pod 30 s altogether."""
WAIT_LOG_SECONDS = 30.0
"""How often a driver that waits for its root says so."""


def run(settings: config.Settings, reread: Callable[[], config.Settings] | None = None) -> int:
    """Serve by `settings` until a signal comes or this instance can't be reached any more; the process's exit status.

    0 after SIGTERM or SIGINT; 1 when it could not start or had to give up, with the reason in the last log lines. A
    second signal ends the process at once, which costs repeated work and nothing else. Call it once, from the main
    thread: it sets up logging, signal handlers, the umask and the attributes of the process.

    `reread` reads the configuration again; what may change without a restart then does.
    """
    telemetry.configure(settings.log_level, json_lines=True)
    process.harden()
    ending = Ending()
    ending.catch_signals()
    try:
        privilege.keep(() if settings.mode == "controller" else privilege.of_the_driver())
        _announce(settings)
        with contextlib.ExitStack() as stack:
            return _serve(settings, config.Live(settings, reread or (lambda: settings)), ending, stack)
    except Cancelled as e:
        log.info("stopped before anything was served: %s", e)
        return 0
    except ModelMountError as e:
        log.error("cannot serve: %s", e, extra={"fields": {"reason": e.reason}})
        return 1
    except Exception:
        log.exception("cannot serve: unexpected error")
        return 1
    finally:
        log.info("stopped")


def _serve(settings: config.Settings, live: config.Live, ending: Ending, stack: contextlib.ExitStack) -> int:
    api = wiring.api(settings) if settings.mode != "controller" else None
    if api is not None:
        stack.enter_context(contextlib.closing(api))
    is_controller = settings.mode == "controller"
    rooms = _controller(settings, stack) if is_controller else _node(settings, live, api, ending, stack)
    door = server.Server(settings, rooms, on_fatal=ending.give_up)
    door.start()
    stack.callback(door.stop, GRACE_SECONDS)
    stack.enter_context(wiring.startup_taint(settings, api))
    log.info("serving", extra={"fields": {"endpoint": settings.endpoint, "mode": settings.mode}})
    asked = ending.wait()
    log.info("stopping: %s", asked.reason)
    return asked.status


def _controller(settings: config.Settings, stack: contextlib.ExitStack) -> server.Rooms:
    """A controller answers from settings, and claims where they name a model: no store, no rights, no mounts."""
    _endpoint(settings, lambda: "", stack)
    return server.Rooms(_NoNode(), wiring.promises(settings), lambda: "")


def _node(
    settings: config.Settings, live: config.Live, api: Api | None, ending: Ending, stack: contextlib.ExitStack
) -> server.Rooms:
    _demand_rights()
    _survey(settings)
    store = Store(Path(settings.root), as_it_is=True)
    readiness = Readiness(store)
    stack.enter_context(_only_driver(settings, store, readiness, ending))
    store.migrate()
    tell = stack.enter_context(wiring.events(settings, api))
    node = stack.enter_context(contextlib.closing(wiring.build(settings, live, api=api, tell=tell)))
    _endpoint(settings, readiness, stack)
    recovered = recovery.recover(store, settings)
    log.info("recovered", extra={"fields": dataclasses.asdict(recovered)})
    readiness.state = ""
    kubelet = threading.Event()
    stack.enter_context(Upkeep(store, node.collector, live, kubelet_heard=kubelet.is_set))
    stack.enter_context(Scrubber(store, node.collector.reader, lambda: live.cache, tell=tell))
    return server.Rooms(
        node.publisher,
        wiring.promises(settings),
        readiness,
        node.interrupt,
        capacity=Capacity(store, node.collector, live),
        heard=kubelet.set,
        namespace=pod_namespace,
    )


def _demand_rights() -> None:
    missing = process.missing_rights()
    if missing:
        raise Precondition(
            f"a node's driver mounts into pods, which takes root and CAP_SYS_ADMIN, but {missing}; run it as root, in "
            "Kubernetes with securityContext.privileged: true (a controller, --mode controller, needs no rights)"
        )


def _survey(settings: config.Settings) -> None:
    """Refuse a place where the store can't work, before anything is made there; warn of one where it works badly."""
    try:
        found = list(ground.troubles(settings))
    except OSError as e:
        raise Precondition(f"the store {settings.root} cannot be looked at: {e.strerror}; choose another root") from e
    for trouble in found:
        if trouble.fatal:
            raise Precondition(f"{trouble.message}; {trouble.remedy}")
        log.warning("%s; %s", trouble.message, trouble.remedy)


def _endpoint(settings: config.Settings, readiness: ports.Readiness, stack: contextlib.ExitStack) -> None:
    address = settings.metrics_host_port
    if address is not None:
        endpoint = stack.enter_context(Endpoint(*address, health=readiness))
        log.info("metrics and health", extra={"fields": {"port": endpoint.port}})


class Readiness:
    """Whether a node can serve, and else why not yet: `state`, empty once it can. Three system calls, no network."""

    def __init__(self, store: Store) -> None:
        self.state = "starting"
        self._store = store

    def __call__(self) -> str:
        """As `ports.Readiness` says. Broken is a store that can't be written: its disk went read-only, or away."""
        if not os.access(self._store.root / "locks", os.W_OK):
            raise Precondition(
                f"the store {self._store.root} can't be written; look at the node's disk and file system"
            )
        return self.state


@contextlib.contextmanager
def _only_driver(settings: config.Settings, store: Store, readiness: Readiness, ending: Ending) -> Iterator[None]:
    """Hold the root's `driver` lock. During a rolling update the old driver may still be ending: wait for it, however
    long, alive and not ready. A restart would change nothing.
    """
    lock = store.lock("driver")
    with contextlib.ExitStack() as meanwhile:
        try:
            held = lock.acquire(timeout=0)
        except LockTimeout:
            readiness.state = f"another driver uses {store.root}; waiting until it ends"
            _endpoint_meanwhile(settings, readiness, meanwhile)
            held = _awaited(lock, readiness.state, ending)
    readiness.state = "starting"
    with held:
        yield


def _awaited(lock: FileLock, why: str, ending: Ending) -> Held:
    while True:
        log.warning(why)
        try:
            return lock.acquire(timeout=WAIT_LOG_SECONDS, cancelled=lambda: ending.asked)
        except LockTimeout:
            continue
        except LockCancelled as e:
            raise Cancelled(f"asked to end meanwhile: {why}") from e


def _endpoint_meanwhile(settings: config.Settings, readiness: Readiness, stack: contextlib.ExitStack) -> None:
    """Health while another driver is waited for. On a host without containers that one still has the address."""
    try:
        _endpoint(settings, readiness, stack)
    except Precondition as e:
        log.warning("no metrics and health until then: %s", e.message)


def _announce(settings: config.Settings) -> None:
    calls, confined = mount.probe(), host.security()
    fields = {
        "version": modelmount.__version__,
        "uid": os.geteuid(),
        "kernel": host.kernel_release(),
        "mount_calls": dataclasses.asdict(calls),
        "security_modules": ",".join(confined.modules),
        "settings": config.as_dict(settings),
    }
    log.info("starting", extra={"fields": fields})


class _NoNode:
    """Stands where a controller has no publisher; nothing calls it, for the Node service isn't served."""

    def publish(self, request: ports.PublishRequest, call: ports.Call) -> None:
        raise Internal("a controller publishes nothing")

    def unpublish(self, volume_id: str, target_path: str) -> None:
        raise Internal("a controller publishes nothing")

    def stats(self, volume_id: str, volume_path: str) -> ports.VolumeStats:
        raise Internal("a controller publishes nothing")
