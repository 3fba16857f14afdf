"""The controller's half: a volume is a promise about a model. No network, nothing stored: the id follows from the name,
the promise travels in the context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from modelmount.config import Settings
from modelmount.volumes.volume import VolumeSpec, significant

PREFIX = "mm1-"


@dataclass(frozen=True, slots=True)
class Promise:
    """What CreateVolume answers with."""

    volume_id: str
    context: dict[str, str]


def create(name: str, parameters: Mapping[str, str], settings: Settings) -> Promise:
    """Validate the class's parameters as a volume's attributes and echo them. Raises InvalidRequest, Forbidden."""
    check_attributes(parameters, settings)
    return Promise(PREFIX + hashlib.sha256(name.encode()).hexdigest()[:40], significant(parameters))


def is_ours(volume_id: str) -> bool:
    """Whether `create` could have made this id. Static volumes have ids of their own, which only publish accepts."""
    digits = volume_id.removeprefix(PREFIX)
    return volume_id.startswith(PREFIX) and len(digits) == 40 and all(c in "0123456789abcdef" for c in digits)


def check_attributes(attributes: Mapping[str, str], settings: Settings) -> None:
    """Raise what publish would raise for these attributes before it looks at anything else."""
    VolumeSpec.parse(attributes).check_allowed(settings)
