"""What a case of the corpus is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from tests.hostile.world import Attack, World

OK = grpc.StatusCode.OK
FAILED = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ABORTED = grpc.StatusCode.ABORTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
NO_SPACE = grpc.StatusCode.RESOURCE_EXHAUSTED

Prepare = Callable[[World, str], Attack]
"""Puts the attack in its place, in a repository of its own."""


@dataclass(frozen=True)
class Case:
    """One attack. `id` begins with its row of the threat model. It ends with this code and these words (a pattern);
    with OK it is of no effect, and the volume shows what the attack says.
    """

    id: str
    prepare: Prepare
    code: grpc.StatusCode = FAILED
    words: str = ""
    partial: bool = False
    """Whether bytes that may be right are kept for the next try."""

    @property
    def row(self) -> str:
        """Of the threat model."""
        return self.id.partition(" ")[0]

    @property
    def repository(self) -> str:
        """A name for it that every registry takes."""
        letters = "".join(character if character.isascii() and character.isalnum() else "-" for character in self.id)
        return "hostile/" + "-".join(part for part in letters.lower().split("-") if part)[:100]
