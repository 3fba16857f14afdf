"""Every type of layer that modctl and kit push, each with a file of its own: tree hash against tree hash with what the
tools' own `pull` and `unpack` make of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from .artifact import FILEPATH, METADATA, Artifact, Blob, gz, tar, tree, zst

MODCTL_KINDS = ("weight", "weight.config", "code", "doc", "dataset")
KIT_KINDS = ("model", "modelpart", "dataset", "code", "docs")
KIT_SECTIONS = {"dataset": "datasets", "code": "code", "docs": "docs"}

Pack = Callable[[str, bytes], bytes]
PACKINGS: Mapping[str, Pack] = {
    "raw": lambda name, content: content,
    "raw+gzip": lambda name, content: gz(content),
    "raw+zstd": lambda name, content: zst(content),
    "tar": lambda name, content: tar((name, content)),
    "tar+gzip": lambda name, content: gz(tar((name, content))),
    "tar+zstd": lambda name, content: zst(tar((name, content))),
}


def tree_hash(files: Mapping[str, bytes | None]) -> str:
    """Over every file's name and bytes; directories are what their files need."""
    found = hashlib.sha256()
    for path in sorted(path for path, content in files.items() if content is not None):
        content = files[path]
        assert content is not None
        found.update(f"{path}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return found.hexdigest()


def source(kinds: tuple[str, ...], packings: tuple[str, ...]) -> dict[tuple[str, str], tuple[str, bytes]]:
    """A file for each kind of layer in each packing, by those: its path and bytes."""
    return {
        (kind, packing): (f"{kind}/sub/{packing}.bin", f"{kind} as {packing}\n".encode() * 50)
        for kind in kinds
        for packing in packings
    }


def modctl(files: Mapping[tuple[str, str], tuple[str, bytes]]) -> Artifact:
    """As `modctl build` writes it, raw and as tars; and compressed, as the specification has it."""
    layers = []
    for (kind, packing), (path, content) in files.items():
        said = {"name": path.rpartition("/")[2], "mode": 420, "uid": 0, "gid": 0, "size": len(content), "typeflag": 0}
        annotations = {FILEPATH: path, METADATA: json.dumps({**said, "mtime": "2026-01-02T03:04:05Z"})}
        media_type = f"application/vnd.cncf.model.{kind}.v1.{packing}"
        layers.append(Blob(media_type, PACKINGS[packing](path, content), annotations))
    config = {
        "descriptor": {"createdAt": "2026-01-02T03:04:05Z", "name": "tiny"},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
        "config": {"architecture": "transformer", "format": "safetensors"},
    }
    model_config = Blob("application/vnd.cncf.model.config.v1+json", json.dumps(config).encode())
    return Artifact(tuple(layers), model_config, "application/vnd.cncf.model.manifest.v1+json")


def kit(files: Mapping[tuple[str, str], tuple[str, bytes]], *, paths_on_layers: bool) -> Artifact:
    """As `kit pack` writes it: the Kitfile names each part by its digest, and since v1.13 each layer says its path."""
    layers = []
    kitfile: dict[str, list[dict[str, str]]] = {"datasets": [], "code": [], "docs": []}
    models: list[dict[str, str]] = []
    for (kind, packing), (path, content) in files.items():
        packed = PACKINGS[packing](path, content)
        annotations = {FILEPATH: path} if paths_on_layers else {}
        layers.append(Blob(f"application/vnd.kitops.modelkit.{kind}.v1.{packing}", packed, annotations))
        entry = {"path": path, "digest": layers[-1].digest, "diffId": layers[-1].digest}
        (kitfile[KIT_SECTIONS[kind]] if kind in KIT_SECTIONS else models).append(entry)
    model = {**models[0], "parts": models[1:]}
    content = json.dumps({"manifestVersion": "1.0.0", "package": {"name": "t"}, "model": model, **kitfile}).encode()
    config = Blob("application/vnd.kitops.modelkit.config.v1+json", content)
    return Artifact(tuple(layers), config, "application/vnd.kitops.modelkit.manifest.v1+json")


@pytest.mark.parametrize("packings", [("raw",), ("tar",), tuple(PACKINGS)], ids="-".join)
def test_modctl(packings: tuple[str, ...], tmp_path: Path) -> None:
    files = source(MODCTL_KINDS, packings)
    assert tree_hash(tree(modctl(files), tmp_path)) == tree_hash(dict(files.values()))


@pytest.mark.parametrize("packings", [("raw",), ("tar",), tuple(PACKINGS)], ids="-".join)
@pytest.mark.parametrize("paths_on_layers", [False, True])
def test_kit(packings: tuple[str, ...], paths_on_layers: bool, tmp_path: Path) -> None:
    files = source(KIT_KINDS, packings)
    found = tree(kit(files, paths_on_layers=paths_on_layers), tmp_path)
    assert tree_hash(found) == tree_hash(dict(files.values()))
