"""Patterns for paths as in .gitignore (gitignore(5)): `*.bin`, `/original/`, `**/onnx`, `!keep.bin`.

Matching is component by component, so that no pattern costs more than its length times a path's.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

MAX_PATTERNS = 64
MAX_PATTERN_CHARACTERS = 256
_ANY_DEPTH = "**"
_WILD = "*?["


@dataclass(frozen=True, slots=True)
class _Pattern:
    components: tuple[str, ...]
    negated: bool
    only_directories: bool

    def matches(self, path: tuple[str, ...], *, directory: bool) -> bool:
        return (directory or not self.only_directories) and _matches(self.components, path)


class Patterns:
    """A list of patterns of which the last one that matches decides, `!` taking back what others match."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Empty lines and comments are skipped. Raises ValueError, saying what is wrong, for what can't be read."""
        self._patterns = tuple(_parse(line) for line in cleaned(lines))

    def __bool__(self) -> bool:
        """Whether there is any pattern."""
        return bool(self._patterns)

    def matches(self, path: str, *, directory: bool = False) -> bool:
        """Whether the patterns mean the file, or directory, at this relative path: itself or a directory above it."""
        components = tuple(path.split("/"))
        for depth in range(1, len(components)):
            if self._decides(components[:depth], directory=True):
                return True
        return self._decides(components, directory=directory)

    def _decides(self, path: tuple[str, ...], *, directory: bool) -> bool:
        for pattern in reversed(self._patterns):
            if pattern.matches(path, directory=directory):
                return not pattern.negated
        return False


def cleaned(lines: Iterable[str]) -> tuple[str, ...]:
    """The lines that are patterns, without spaces at the end."""
    stripped = (line.rstrip() for line in lines)
    return tuple(line for line in stripped if line and not line.startswith("#"))


def _parse(line: str) -> _Pattern:
    if len(line) > MAX_PATTERN_CHARACTERS:
        raise ValueError(f"the pattern {line[:40]!a}… is longer than {MAX_PATTERN_CHARACTERS} characters")
    negated = line.startswith("!")
    text = line.removeprefix("!") if negated else line
    only_directories = text.endswith("/")
    text = text.removesuffix("/")
    if not text:
        raise ValueError(f"the pattern {line!a} names nothing")
    anchored = "/" in text
    components = tuple(text.removeprefix("/").split("/"))
    if "" in components or not {".", ".."}.isdisjoint(components):
        raise ValueError(f"the pattern {line!a} has an empty component, '.' or '..'")
    if "***" in text:
        raise ValueError(f"the pattern {line!a} has three stars in a row; two stand for any directories")
    if text.endswith("\\"):
        raise ValueError(f"the pattern {line!a} ends with a backslash")
    return _Pattern(components if anchored else (_ANY_DEPTH, *components), negated, only_directories)


def _matches(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Whether the whole path is meant; `**` stands for any number of components, at the end for at least one."""
    reached = {0}
    for number, component in enumerate(pattern):
        if component == _ANY_DEPTH:
            last = number == len(pattern) - 1
            reached = set(range(min(reached) + last, len(path) + 1))
        else:
            wanted = _component(component)
            reached = {at + 1 for at in reached if at < len(path) and wanted.fullmatch(path[at])}
        if not reached:
            return False
    return len(path) in reached


@lru_cache(maxsize=1024)
def _component(pattern: str) -> re.Pattern[str]:
    """One component as an expression; fnmatch makes one that doesn't go back and forth. `\\` takes the next character
    as it is, and `[^` is `[!`.
    """
    text = re.sub(r"\\(.)", lambda match: f"[{match[1]}]" if match[1] in _WILD else match[1], pattern, flags=re.DOTALL)
    return re.compile(fnmatch.translate(text.replace("[^", "[!")))
