"""What a run was asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Setting:
    """`directory` is empty at each case's begin, on the file system to measure, with a name short enough for sockets
    below it. `say` takes a line for whoever waits.
    """

    directory: Path
    rounds: int
    quick: bool
    say: Callable[[str], None]

    def size(self, whole: int, quick: int) -> int:
        """The one that this run takes."""
        return quick if self.quick else whole
