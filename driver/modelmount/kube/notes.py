"""What is to be told of a pod."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the kubelet names it."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Note:
    """An event before it is written: `message` is a sentence for the pod's owner, without any secret."""

    pod: Pod
    kind: Literal["Normal", "Warning"]
    reason: str
    message: str
