"""A job's life as its callers see it: running, then done or failed; calls wait, join and leave, the job goes on."""

from __future__ import annotations

import copy
import threading
import time
from enum import Enum

from modelmount.errors import ModelMountError
from modelmount.formats.selection import Selection
from modelmount.pull.fetch import Cancel
from modelmount.pull.progress import Progress, Snapshot
from modelmount.pull.resolver import Model
from modelmount.registry.credentials import Credential
from modelmount.snapshots.tree import Tree

AWAITED_SECONDS = 130.0
"""A pod's caller comes back within this time: the kubelet waits at most 122 s between its tries."""


class State(Enum):
    """RUNNING becomes DONE or FAILED once and for all."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Waiter:
    """One call that waits. `abandon` wakes it early: the client went away, the volume was unpublished, the driver
    stops.
    """

    def __init__(self) -> None:
        """A fresh waiter waits for one job."""
        self._event = threading.Event()
        self.abandoned = False

    def abandon(self) -> None:
        """Stop waiting; `Job.wait` returns at once."""
        self.abandoned = True
        self._event.set()

    def wake(self) -> None:
        """The job ended."""
        self._event.set()

    def sleep(self, seconds: float) -> None:
        """Wait until woken, abandoned or over."""
        self._event.wait(seconds)


class Timing:
    """How long a job takes, or took: it outlives the job."""

    __slots__ = ("_began", "_ended")

    def __init__(self) -> None:
        """The job begins now."""
        self._began = time.monotonic()
        self._ended: float | None = None

    def end(self) -> None:
        """The job ended."""
        self._ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """So far, or altogether."""
        return (time.monotonic() if self._ended is None else self._ended) - self._began


class Job:
    """One pull of one model with one selection. Made and run by the Puller."""

    def __init__(
        self,
        model: Model,
        selection: Selection,
        credential: Credential,
        *,
        fetches: bool = True,
        prefetches: bool = False,
        namespace: str = "",
    ) -> None:
        """For a pod of `namespace`, or for nobody's. RUNNING from the start. One that doesn't fetch makes do with the
        blobs that are here, or fails; one that prefetches does so until somebody joins who will read the model.
        """
        self.model, self.selection, self.fetches, self.prefetches = model, selection, fetches, prefetches
        self.namespace = namespace
        self.progress = Progress()
        self.cancel = Cancel()
        self.ended = threading.Event()
        self.timing = Timing()
        self._lock = threading.Lock()
        self._credential = credential
        self._waiters: set[Waiter] = set()
        self._state = State.RUNNING
        self._tree: Tree | None = None
        self._error: ModelMountError | None = None
        self._asked_at = time.monotonic()

    @property
    def state(self) -> State:
        """RUNNING, DONE or FAILED."""
        return self._state

    @property
    def credential(self) -> Credential:
        """The newest proved credential of any caller."""
        return self._credential

    @property
    def idle_seconds(self) -> float:
        """Time since a call last asked for this job; 0 while one waits."""
        with self._lock:
            return 0.0 if self._waiters else time.monotonic() - self._asked_at

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for it to read it, or is likely to ask again: what nobody needs now comes later."""
        return not self.prefetches and self.idle_seconds < AWAITED_SECONDS

    def join(self, credential: Credential, *, prefetch: bool = False) -> None:
        """A caller with its own proof wants the result, and unless it is a `prefetch` to read it at once."""
        with self._lock:
            self._credential = credential
            self.prefetches = self.prefetches and prefetch
            self._asked_at = time.monotonic()

    def wait(self, waiter: Waiter, seconds: float) -> Tree | None:
        """The tree, or None when the time is over or the waiter was abandoned.

        Raises the job's error when it failed, each caller its own instance: threads must not share a traceback.
        """
        with self._lock:
            if self._state is State.RUNNING:
                self._waiters.add(waiter)
        if self._state is State.RUNNING:
            waiter.sleep(seconds)
        with self._lock:
            self._waiters.discard(waiter)
            self._asked_at = time.monotonic()
            if self._error is not None:
                raise copy.copy(self._error) from self._error
            return self._tree

    def snapshot(self) -> Snapshot:
        """Where it stands."""
        return self.progress.snapshot()

    def finish(self, outcome: Tree | ModelMountError) -> None:
        """Set the end state and wake everybody."""
        with self._lock:
            if isinstance(outcome, ModelMountError):
                self._state, self._error = State.FAILED, outcome
            else:
                self._state, self._tree = State.DONE, outcome
            waiters, self._waiters = self._waiters, set()
        self.timing.end()
        self.ended.set()
        for waiter in waiters:
            waiter.wake()
