"""Artifacts to measure with: random bytes that are the same each time, as static files that any web server serves as
a registry would.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes import push
from tests.fakes.registry import Registry

REPOSITORY, TAG = "bench/model", "v1"
PIECE_BYTES = 1 << 20
RAW = "application/vnd.cncf.model.weight.v1.raw"


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob and where it lies; `name` is the file that it becomes."""

    name: str
    path: Path
    size: int
    digest: str
    media_type: str = RAW


@dataclass(frozen=True, slots=True)
class Artifact:
    """What everybody pulls. `shown` is the size of the files that it becomes, the layers' own for raw ones."""

    document: bytes
    layers: tuple[Layer, ...]
    shown: int

    @property
    def digest(self) -> str:
        """The manifest's."""
        return f"sha256:{hashlib.sha256(self.document).hexdigest()}"

    @property
    def size(self) -> int:
        """The layers' bytes."""
        return sum(layer.size for layer in self.layers)


def raw(site: Path, sizes: Sequence[int]) -> Artifact:
    """A model of raw files of these sizes, laid out below `site`."""
    layers = tuple(
        store(site, f"model-{n:05d}-of-{len(sizes):05d}.safetensors", random_pieces(n, size))
        for n, size in enumerate(sizes, 1)
    )
    return compose(site, layers)


def random_pieces(seed: int, size: int) -> Iterator[bytes]:
    """`size` bytes that compression can do nothing about."""
    source = random.Random(seed)
    for offset in range(0, size, PIECE_BYTES):
        yield source.randbytes(min(size - offset, PIECE_BYTES))


def store(site: Path, name: str, pieces: Iterator[bytes], media_type: str = RAW) -> Layer:
    """Write a blob under its digest."""
    blobs = site / f"v2/{REPOSITORY}/blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    hasher, size, temporary = hashlib.sha256(), 0, blobs / ".new"
    with temporary.open("wb") as file:
        for piece in pieces:
            hasher.update(piece)
            size += file.write(piece)
    digest = f"sha256:{hasher.hexdigest()}"
    return Layer(name, temporary.rename(blobs / digest), size, digest, media_type)


def compose(site: Path, layers: Sequence[Layer], shown: int | None = None) -> Artifact:
    """A ModelPack manifest of the layers under `TAG`. Each is titled too, as ORAS clients store no others."""
    config = store(site, "config", iter([b"{}"]), push.MODELPACK_CONFIG)
    document = {
        "schemaVersion": 2,
        "mediaType": push.MANIFEST,
        "artifactType": push.MODELPACK_ARTIFACT,
        "config": _descriptor(config),
        "layers": [
            _descriptor(layer) | {"annotations": {push.FILEPATH: layer.name, push.TITLE: layer.name}}
            for layer in layers
        ],
    }
    data = json.dumps(document, separators=(",", ":")).encode()
    size = sum(layer.size for layer in layers)
    artifact = Artifact(data, tuple(layers), size if shown is None else shown)
    manifests = site / f"v2/{REPOSITORY}/manifests"
    manifests.mkdir(parents=True)
    for name in (TAG, artifact.digest):
        (manifests / name).write_bytes(data)
    return artifact


def publish(registry: Registry, artifact: Artifact) -> None:
    """Push it to a real registry as well."""
    pusher = push.Pusher(registry.host, registry.connection)
    contents: list[push.Content] = [b"{}", *(layer.path for layer in artifact.layers)]
    for content in contents:
        pusher.blob(REPOSITORY, content)
    pusher.manifest(REPOSITORY, TAG, artifact.document)


def _descriptor(layer: Layer) -> dict[str, object]:
    return {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
