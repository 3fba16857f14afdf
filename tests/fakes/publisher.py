"""Publications in memory, for tests of the gRPC door: they park, fail and succeed on command, and keep the promises of
the real publisher.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from modelmount import config, errors
from modelmount.service import ports

EVENT_SECONDS = 60.0
"""How long a test waits for something that has to happen; not a duration that any test expects."""


@dataclass(frozen=True, slots=True)
class Stats:
    used_bytes: int = 1000
    available_bytes: int = 9000
    used_inodes: int = 3
    available_inodes: int = 97
    abnormal: bool = False
    message: str = "the model is complete"


class FakePublisher:
    """Volumes by target. While parking, a publish waits until let go, cancelled, unpublished or out of time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._parking = False
        self._stubborn = False
        self._unpublish_parking = False
        self._failure: Exception | None = None
        self._parked: dict[str, ports.PublishRequest] = {}
        self._unpublishing = 0
        self.published: dict[str, ports.PublishRequest] = {}
        self.calls: list[ports.Call] = []
        self.unpublished: list[tuple[str, str]] = []
        self.stats_answer = Stats()

    def publish(self, request: ports.PublishRequest, call: ports.Call) -> None:
        with self._changed:
            self.calls.append(call)
            if self._failure is not None:
                raise self._failure
            live = self.published.get(request.target_path)
            if live is not None:
                if live.attributes != request.attributes:
                    raise errors.Conflict(f"volume {request.volume_id} is published with other attributes")
                return
            if request.target_path in self._parked:
                raise errors.Pending(f"volume {request.volume_id} is being published by another call")
            self._parked[request.target_path] = request
            self._changed.notify_all()
            try:
                self._wait(request, call)
            finally:
                self._parked.pop(request.target_path, None)
                self._changed.notify_all()
            self.published[request.target_path] = request

    def unpublish(self, volume_id: str, target_path: str) -> None:
        with self._changed:
            self._unpublishing += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._unpublish_parking)
            self._unpublishing -= 1
            self.unpublished.append((volume_id, target_path))
            self.published.pop(target_path, None)
            self._parked.pop(target_path, None)
            self._changed.notify_all()

    def stats(self, volume_id: str, volume_path: str) -> Stats:
        with self._changed:
            live = self.published.get(volume_path)
        if live is None or live.volume_id != volume_id:
            raise errors.NotFound(f"volume {volume_id} isn't published at {volume_path}")
        return self.stats_answer

    @contextmanager
    def parking(self, *, stubborn: bool = False) -> Iterator[None]:
        """Park every publish inside the block; a stubborn one doesn't look at whether its caller is still there."""
        self._set(_parking=True, _stubborn=stubborn)
        try:
            yield
        finally:
            self._set(_parking=False)

    @contextmanager
    def parking_unpublishes(self) -> Iterator[None]:
        """Let every unpublish inside the block hang."""
        self._set(_unpublish_parking=True)
        try:
            yield
        finally:
            self._set(_unpublish_parking=False)

    def fail(self, error: Exception | None) -> None:
        """Raise `error` from now on."""
        self._set(_failure=error)

    @property
    def parked(self) -> int:
        with self._changed:
            return len(self._parked)

    def await_parked(self, count: int) -> None:
        """Return once exactly `count` publishes are parked."""
        self._await(lambda: len(self._parked) == count, f"{count} parked publishes")

    def await_unpublishing(self, count: int) -> None:
        """Return once `count` unpublishes hang."""
        self._await(lambda: self._unpublishing == count, f"{count} hanging unpublishes")

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, EVENT_SECONDS):
                raise TimeoutError(f"there never were {what}")

    def _set(self, **fields: object) -> None:
        with self._changed:
            for name, value in fields.items():
                setattr(self, name, value)
            self._changed.notify_all()

    def _wait(self, request: ports.PublishRequest, call: ports.Call) -> None:
        while self._parking:
            if not self._stubborn and call.cancelled.is_set():
                raise errors.Cancelled("the caller went away")
            if request.target_path not in self._parked:
                raise errors.Cancelled(f"volume {request.volume_id} was unpublished meanwhile")
            if call.deadline is not None and time.monotonic() > call.deadline - 0.1:
                raise errors.Pending(f"pulling {request.attributes.get('model')}: 43 %")
            self._changed.wait(0.01)  # an Event and a Condition cannot be waited for together


@dataclass(frozen=True, slots=True)
class FakePromise:
    volume_id: str
    context: Mapping[str, str]


class FakePromises:
    """Volumes of models whose reference contains a slash; `registry.bad` is forbidden."""

    def create(self, name: str, parameters: Mapping[str, str], settings: config.Settings) -> FakePromise:
        self.check_attributes(parameters, settings)
        return FakePromise("fake-" + hashlib.sha256(name.encode()).hexdigest(), parameters)

    def is_ours(self, volume_id: str) -> bool:
        return volume_id.startswith("fake-")

    def check_attributes(self, attributes: Mapping[str, str], settings: config.Settings) -> None:
        model = attributes.get("model", "")
        if "/" not in model:
            raise errors.InvalidRequest("volume attribute 'model' is missing")
        if model.startswith("registry.bad/"):
            raise errors.Forbidden("registry registry.bad isn't allowed")
