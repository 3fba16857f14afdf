"""The command line as its users run it: a process of its own, a real registry, a store in a directory of the test."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import mounts, push
from tests.fakes.driver import Driver
from tests.fakes.registry import Registry

LARGE = 700_000


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Standard output as JSON objects, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def object(self) -> dict[str, Any]:
        """The only one."""
        (only,) = self.objects
        return only


@dataclass
class Machine:
    """A machine with a registry in reach; the driver doesn't run unless a test starts it."""

    directory: Path
    driver: Driver
    registry: Registry
    files: dict[str, bytes] = field(default_factory=dict)

    def run(self, *arguments: str, **options: Any) -> Outcome:
        """One command with this machine's configuration."""
        done = self.driver.run(*arguments, **options)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def push(self, repository: str = "llm/tiny", tag: str = "v1", **authorization: str) -> push.Pushed:
        """A model of raw files and one packed directory."""
        model = self.directory / "model"
        if not model.exists():
            write_model(model)
        self.files = {p.relative_to(model).as_posix(): p.read_bytes() for p in model.rglob("*") if p.is_file()}
        pusher = push.Pusher(self.registry.host, self.registry.connection, **authorization)
        return pusher.artifact(repository, tag, push.oras(model, packed=["tokenizer"]))


def write_model(directory: Path) -> None:
    """Files of a model, some in a directory."""
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "llama"}\n')
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * (LARGE // 256))
    (directory / "tokenizer/vocab.txt").write_text("a\nb\n")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` by relative path."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="mm-cli-") as name:
        yield Path(name)
        mounts.detach_below(Path(name))


@pytest.fixture
def machine(directory: Path) -> Iterator[Machine]:
    """A machine whose configuration names an anonymous registry."""
    with Registry(directory / "registry") as registry:
        driver = Driver(directory / "node", [registry])
        yield Machine(directory, driver, registry)
        driver.kill()


@pytest.fixture
def private(directory: Path) -> Iterator[Machine]:
    """A machine whose registry wants a name and a password."""
    with Registry(directory / "registry", users={"robot": "s3cret-word"}) as registry:
        yield Machine(directory, Driver(directory / "node", [registry]), registry)
