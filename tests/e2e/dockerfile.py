"""Reads a Dockerfile far enough to do its stages by hand where no container engine runs, and to say what is in it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction after continuation lines were joined and ARGs put in."""

    word: str
    text: str

    @property
    def words(self) -> list[str]:
        """The text as a shell would split it, or the JSON form's strings."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)


@dataclass(slots=True)
class Stage:
    """The instructions between one FROM and the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[Instruction]:
        """The instructions with this word, in order."""
        return [i for i in self.instructions if i.word == word]


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile. Knows ARG before the first FROM, `${NAME}`, and backslash continuation; no heredocs,
    no parser directives.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in joined.splitlines():
        word, _, rest = line.strip().partition(" ")
        if not word:
            continue
        if not stages and word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif word == "FROM":
            base, _, name = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], rest).partition(" AS ")
            stages.append(Stage(base, name))
        else:
            stages[-1].instructions.append(Instruction(word, rest.strip()))
    return stages


def relocated(command: str, root: Path, places: tuple[str, ...]) -> str:
    """`command` with each absolute path that begins with one of `places` moved below `root`."""
    pattern = "|".join(re.escape(place) for place in places)
    return re.sub(rf"(?<![\w./])(?={pattern})", str(root), command)
