"""Models to measure with: random bytes that are the same each time, in as many files as asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tests.fakes import push
from tests.fakes.registry import Registry

PIECE_BYTES = 1 << 20


def make(directory: Path, weights: Sequence[int]) -> Path:
    """A model with one weights file for each size, and two small files as every model has them."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "bench"}\n')
    (directory / "tokenizer.json").write_bytes(random.Random(0).randbytes(512 << 10))
    for number, size in enumerate(weights, 1):
        source = random.Random(number)
        with (directory / f"model-{number:05d}-of-{len(weights):05d}.safetensors").open("wb") as file:
            for offset in range(0, size, PIECE_BYTES):
                file.write(source.randbytes(min(size - offset, PIECE_BYTES)))
    return directory


def publish(registry: Registry, directory: Path, repository: str) -> push.Pushed:
    """Push it as ModelPack, one raw blob a file."""
    pusher = push.Pusher(registry.host, registry.connection)
    return pusher.artifact(repository, "v1", push.modelpack(directory, packing="raw", name="bench"))
