"""Reads a Dockerfile far enough to do its stages by hand where no container engine runs, and to say what is in it."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

PLACES = ("/opt/modelmount", "/build", "/dist", "/src")
"""Directories that our Dockerfile uses."""


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


def build(stage: Stage, context: Path, root: Path, *, path: str | None = None) -> None:
    """Do a stage in a directory in the place of the image's root: its own RUN lines, with PLACES moved below `root`.
    `path` is the PATH they get, by default ours. Raises RuntimeError with what a command said.
    """
    workdir = root
    for step in stage.instructions:
        if step.word == "WORKDIR":
            workdir = root / step.text.lstrip("/")
            workdir.mkdir(parents=True)
        elif step.word == "COPY":
            _copy(step.words, context, workdir)
        elif step.word == "RUN":
            _run(relocated(step.text, root, PLACES), workdir, path)
        else:
            raise RuntimeError(f"{step.word} is not known here")


def undo(directory: Path, root: Path) -> None:
    """Move what `build` made back: paths below `root` in scripts and configuration become the image's own."""
    for file in (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()):
        data = file.read_bytes()
        if str(root).encode() in data and b"\0" not in data:
            file.write_bytes(data.replace(str(root).encode(), b""))


def _copy(words: list[str], context: Path, workdir: Path) -> None:
    *sources, destination = words
    for source in sources:
        if source.startswith("-") or not _in_context(source, context):
            raise RuntimeError(f".dockerignore hides {source}, or it is an option")
        into = workdir / destination
        if (context / source).is_dir():
            shutil.copytree(context / source, into, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            target = into / Path(source).name if destination.endswith("/") else into
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(context / source, target)


def _in_context(source: str, context: Path) -> bool:
    kept = True
    for line in (context / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and (fnmatch.fnmatch(source, pattern) or source.startswith(pattern + "/")):
            kept = line.startswith("!")
    return kept


def _run(command: str, workdir: Path, path: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}}
    if path is not None:
        environment["PATH"] = path
    done = subprocess.run(
        ["/bin/sh", "-euc", command],
        cwd=workdir,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
