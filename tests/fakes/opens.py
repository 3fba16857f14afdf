"""What this process opens and lists, by Python's own audit events: nothing is overlooked, and nothing is changed."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator

_EVENTS = frozenset({"open", "os.listdir", "os.scandir"})
_watching: list[Callable[[str], None]] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event in _EVENTS and isinstance(arguments[0], str | bytes | os.PathLike):
        for tell in tuple(_watching):
            tell(os.fsdecode(arguments[0]))


@functools.cache
def _hook() -> None:
    """Once for a process and for good: there is no way to take one off."""
    sys.addaudithook(_audit)


@contextlib.contextmanager
def watched(tell: Callable[[str], None]) -> Iterator[None]:
    """`tell` gets each path that is opened or listed inside the block, by any thread."""
    _hook()
    _watching.append(tell)
    try:
        yield
    finally:
        _watching.remove(tell)
