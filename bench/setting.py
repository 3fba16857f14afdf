"""What a run was asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Setting:
    """`directory` is empty, on the file system to measure, with a name short enough for sockets below it. `size` is in
    bytes; `say` takes a line for whoever waits.
    """

    directory: Path
    rounds: int
    size: int
    publishes: int
    say: Callable[[str], None]
