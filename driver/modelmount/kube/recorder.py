"""Events on pods, as `kubectl describe pod` shows them: written by a thread of its own, so that no publish waits for
the API server.

What client-go does against floods is done here too (tools/record/events_cache.go): the same event again only raises its
count, and a pod gets 25 writes, then one in five minutes. News that isn't a warning is told once. What finds no place
among those that wait is dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

from modelmount import telemetry
from modelmount.errors import Forbidden, ModelMountError, NotFound, Unavailable, printable
from modelmount.kube.notes import Note

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

WAITING: Final = 1024
"""Events that may wait for the API server."""
REMEMBERED: Final = 4096
"""Events, and pods, that are remembered, in order not to tell the same anew."""
BURST: Final = 25
REFILL_SECONDS: Final = 300.0
TRIES: Final = 5
FIRST_PAUSE_SECONDS: Final = 1.0
"""Doubled after each try."""
NAME_CHARACTERS: Final = 200
"""Longest part of a pod's name in the name of its events, which may have 253."""
CLOSE_SECONDS: Final = 2.0


class Writes(Protocol):
    """Writes events: `kube.api.Api`."""

    def create_event(self, note: Note, name: str, component: str, node: str) -> None:
        """Write an event of this name, told for the first time."""

    def count_event(self, note: Note, name: str, count: int) -> None:
        """Say that an event has happened again; NotFound when it has expired."""


@dataclass(slots=True)
class _Written:
    """An event that stands in the cluster."""

    name: str
    count: int


@dataclass(slots=True)
class _Allowance:
    """How many writes a pod has left, as of `at`."""

    left: float
    at: float


class Recorder:
    """Use as a context manager: the thread lives as long. `tell` may be called from any thread, and never waits."""

    def __init__(self, api: Writes, *, component: str, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`component` and `node` say who tells."""
        self._api, self._component, self._node, self._clock = api, component, node, clock
        self._notes: queue.Queue[Note | None] = queue.Queue(WAITING)
        self._stopping = threading.Event()
        self._written: OrderedDict[Note, _Written] = OrderedDict()
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        with contextlib.suppress(queue.Full):  # then the thread isn't waiting for one
            self._notes.put_nowait(None)
        self._thread.join(CLOSE_SECONDS)

    def tell(self, note: Note) -> None:
        """Have it written soon, or drop it. Never waits, never raises."""
        try:
            self._notes.put_nowait(note)
        except queue.Full:
            _count("dropped")

    # -- the thread

    def _run(self) -> None:
        while (note := self._notes.get()) is not None and not self._stopping.is_set():
            try:
                self._record(replace(note, message=printable(note.message)))
            except Exception:  # whatever it is, the next event is to be written
                log.exception("an event could not be written")
                _count("failed")

    def _record(self, note: Note) -> None:
        written = self._written.get(note)
        if written is not None and note.kind == "Normal":
            return
        if not self._may_write(note.pod.uid):
            _count("limited")
            return
        pause = FIRST_PAUSE_SECONDS
        for _ in range(TRIES):
            try:
                self._write(note, written)
            except Unavailable as e:
                log.debug("an event is not written yet: %s", e)
                if self._stopping.wait(pause):
                    break
                pause *= 2
            except ModelMountError as e:
                self._complain(e)
                return
            else:
                self._complained = False
                _count("written")
                return
        _count("failed")

    def _write(self, note: Note, written: _Written | None) -> None:
        if written is not None:
            try:
                self._api.count_event(note, written.name, written.count + 1)
            except NotFound:
                pass  # the cluster forgets events after an hour: it is news again
            else:
                written.count += 1
                self._written.move_to_end(note)
                return
        name = f"{note.pod.name[:NAME_CHARACTERS].rstrip('.-')}.{uuid.uuid4().hex[:16]}"
        self._api.create_event(note, name, self._component, self._node)
        _remember(self._written, note, _Written(name, 1))

    def _may_write(self, uid: str) -> bool:
        now = self._clock()
        allowance = self._allowances.get(uid) or _Allowance(BURST, now)
        left = min(float(BURST), allowance.left + (now - allowance.at) / REFILL_SECONDS)
        _remember(self._allowances, uid, _Allowance(left - 1 if left >= 1 else left, now))
        return left >= 1

    def _complain(self, error: ModelMountError) -> None:
        """Say it once, until an event can be written again."""
        if isinstance(error, NotFound):  # the namespace is going, and its pods with it
            _count("failed")
            return
        _count("refused" if isinstance(error, Forbidden) else "failed")
        if not self._complained:
            log.warning(
                "pods are not told of their models: %s; let the driver's service account create and patch events "
                "(the chart's events.enabled), or set kubernetes.events = false",
                error,
            )
        self._complained = True


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)


def _count(result: str) -> None:
    telemetry.events_total.labels(result).inc()
