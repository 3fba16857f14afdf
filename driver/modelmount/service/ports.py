"""What the service needs from the rooms below it: where a publication is made, what a volume is, whether this instance
works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from modelmount import config


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """One NodePublishVolume, its fields checked for presence and form but not for meaning: the path may lie anywhere,
    attributes may be unknown.
    """

    volume_id: str
    target_path: str
    attributes: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    mount_flags: tuple[str, ...]
    readonly: bool


@dataclass(frozen=True, slots=True)
class Call:
    """The caller's patience: `deadline` on time.monotonic()'s clock, None without one; `cancelled` is set once nobody
    waits for the answer.
    """

    deadline: float | None
    cancelled: threading.Event


class VolumeStats(Protocol):
    """Use and health of one publication. Bytes and inodes are counts, never negative; `message` is a sentence also when
    nothing is wrong.
    """

    @property
    def used_bytes(self) -> int:
        """What the model takes."""

    @property
    def available_bytes(self) -> int:
        """What is free on the store's file system."""

    @property
    def used_inodes(self) -> int:
        """Files and directories of the model."""

    @property
    def available_inodes(self) -> int:
        """Free inodes of the store's file system."""

    @property
    def abnormal(self) -> bool:
        """Whether a reader may be harmed."""

    @property
    def message(self) -> str:
        """What is wrong, or that nothing is."""


class Publisher(Protocol):
    """Makes and ends publications. Safe to call from many threads; raises ModelMountError.

    `publish` waits no longer than `call` allows, and returns soon after `call.cancelled` is set. `unpublish` and
    `stats` never wait for a pull.
    """

    def publish(self, request: PublishRequest, call: Call) -> None:
        """Return once the model is mounted at the target; Pending while its pull goes on."""

    def unpublish(self, volume_id: str, target_path: str) -> None:
        """Unmount and remove the target; done already is success. A publish that waits for the same target gives up."""

    def stats(self, volume_id: str, volume_path: str) -> VolumeStats:
        """Answer in constant time; NotFound for a volume, or a place, that isn't published."""


class Promise(Protocol):
    """A volume before any node has it: its id, and the context the nodes get."""

    @property
    def volume_id(self) -> str:
        """The same for the same name."""

    @property
    def context(self) -> Mapping[str, str]:
        """The checked attributes."""


class Promises(Protocol):
    """The controller's knowledge of volumes: `modelmount.volumes.promise.Promises`."""

    def create(self, name: str, parameters: Mapping[str, str], settings: config.Settings) -> Promise:
        """The volume of that name; InvalidRequest for wrong parameters, Forbidden for what the admin rules out."""

    def is_ours(self, volume_id: str) -> bool:
        """Whether `create` may have made the id."""

    def check_attributes(self, attributes: Mapping[str, str], settings: config.Settings) -> None:
        """Raise InvalidRequest or Forbidden unless a publish would take these attributes."""


Readiness = Callable[[], str]
"""What keeps calls from being served yet, as a sentence; empty when they are. Raises Precondition when this instance is
broken. Never asks a registry.
"""
