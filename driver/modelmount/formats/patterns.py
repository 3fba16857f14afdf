"""Patterns for paths as in .gitignore (gitignore(5)): `*.bin`, `/original/`, `**/onnx`, `!keep.bin`.

Matching is component by component, from the root on and each once, so that no pattern costs more than its length times
a path's.
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

    def start(self) -> frozenset[int]:
        """How many of its components are used up before the path begins: none, and those that may stand for none."""
        return self._passed({0})

    def after(self, reached: frozenset[int], component: str) -> frozenset[int]:
        """How many may be used up once this component of the path is, too."""
        found: set[int] = set()
        for at in reached:
            if at == len(self.components):
                continue
            own = self.components[at]
            if own == _ANY_DEPTH:
                found |= {at, at + 1}
            elif _component(own).fullmatch(component):
                found.add(at + 1)
        return self._passed(found)

    def is_meant(self, reached: frozenset[int], *, directory: bool) -> bool:
        """Whether the path that led there is meant as a whole."""
        return len(self.components) in reached and (directory or not self.only_directories)

    def _passed(self, reached: set[int]) -> frozenset[int]:
        """`**` stands for any number of components, at the end for at least one."""
        for at, own in enumerate(self.components[:-1]):
            if own == _ANY_DEPTH and at in reached:
                reached.add(at + 1)
        return frozenset(reached)


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
        reached = [pattern.start() for pattern in self._patterns]
        *above, last = path.split("/")
        for name in above:
            reached = self._after(reached, name)
            if self._decides(reached, directory=True):
                return True
        return self._decides(self._after(reached, last), directory=directory)

    @property
    def components(self) -> int:
        """How many all of them have together: a path costs at most as many looks at each of its own."""
        return sum(len(pattern.components) for pattern in self._patterns)

    def _after(self, reached: list[frozenset[int]], name: str) -> list[frozenset[int]]:
        found = zip(self._patterns, reached, strict=True)
        return [pattern.after(each, name) if each else each for pattern, each in found]

    def _decides(self, reached: list[frozenset[int]], *, directory: bool) -> bool:
        for pattern, each in zip(reversed(self._patterns), reversed(reached), strict=True):
            if pattern.is_meant(each, directory=directory):
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


@lru_cache(maxsize=1024)
def _component(pattern: str) -> re.Pattern[str]:
    """One component as an expression; fnmatch makes one that doesn't go back and forth. `\\` takes the next character
    as it is, and `[^` is `[!`.
    """
    text = re.sub(r"\\(.)", lambda match: f"[{match[1]}]" if match[1] in _WILD else match[1], pattern, flags=re.DOTALL)
    return re.compile(fnmatch.translate(text.replace("[^", "[!")))
