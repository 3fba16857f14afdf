"""One thing that an examination found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """OK; WARN works, with a drawback or a doubt; FAIL doesn't work until somebody does something."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """`name` says what was looked at, in one word; `remedy` is what to do, empty for OK."""

    level: Level
    name: str
    message: str
    remedy: str = ""


def ok(name: str, message: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, name, message)


def warn(name: str, message: str, remedy: str) -> Finding:
    """It works, but."""
    return Finding(Level.WARN, name, message, remedy)


def fail(name: str, message: str, remedy: str) -> Finding:
    """It doesn't work until the remedy is taken."""
    return Finding(Level.FAIL, name, message, remedy)
