"""ModelPack, the CNCF model-spec v0.0.7: a raw layer for each file.

Raw, and not an archive of one entry: such a blob is itself the file that pods read, it can be had in ranges, two models
that have a file in common share it in the registry and on every node, and its digest is the file's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelmount.oci.digest import Digest
from modelmount.packaging.base import Package, Part, descriptor, document, manifest
from modelmount.packaging.description import Description

_PREFIX: Final = "application/vnd.cncf.model."
_ARTIFACT_TYPE: Final = f"{_PREFIX}manifest.v1+json"
_CONFIG_TYPE: Final = f"{_PREFIX}config.v1+json"
_FILEPATH: Final = "org.cncf.model.filepath"
_METADATA: Final = "org.cncf.model.file.metadata+json"

_MODE: Final = 0o644
_EPOCH: Final = "1970-01-01T00:00:00Z"
"""Modes and times of the files don't go along: the same files are to be the same digest wherever they lie."""

_CONFIGS: Final = ".json .jsonl .yaml .yml .toml .ini .cfg .conf .xml .jinja .tiktoken .model vocab.txt merges.txt"
_WEIGHTS: Final = ".safetensors .gguf .bin .pt .pth .ckpt .onnx .onnx_data .h5 .msgpack .tflite .npz .npy .ot .engine"
_DOCUMENTS: Final = ".md .txt .pdf .rst .html .png .jpg .jpeg .svg .gif license notice readme"
_CODE: Final = ".py .sh .ipynb .cpp .c .h .cu .rs .go .js .lua"
_KINDS: Final[Mapping[str, frozenset[str]]] = {
    "weight.config": frozenset(_CONFIGS.split()),
    "weight": frozenset(_WEIGHTS.split()),
    "doc": frozenset(_DOCUMENTS.split()),
    "code": frozenset(_CODE.split()),
}
"""Kinds of layers by suffix, or by a whole name."""
_LARGE: Final = 128 << 20
"""A file of no known name is weights from this size on, and code below it; so it is in modctl."""


def package(parts: Sequence[Part], about: Description, annotations: Mapping[str, str]) -> Package:
    """A ModelPack manifest of these files, and a config that says what they say."""
    config = document(_config(parts, about))
    layers = [
        descriptor(f"{_PREFIX}{_kind(part)}.v1.raw", part.digest, part.size, _annotations(part)) for part in parts
    ]
    described = {"mediaType": _CONFIG_TYPE, "digest": str(Digest.of(config)), "size": len(config)}
    return Package(config, manifest(_ARTIFACT_TYPE, described, layers, annotations))


def _config(parts: Sequence[Part], about: Description) -> dict[str, Any]:
    return {
        "descriptor": _said(name=about.name, family=about.family, licenses=list(about.licenses)),
        "modelfs": {"type": "layers", "diffIds": [str(part.digest) for part in parts]},
        "config": _said(
            architecture=about.architecture,
            format=about.format,
            paramSize=about.parameters,
            precision=about.precision,
            quantization=about.quantization,
        ),
    }


def _said(**values: object) -> dict[str, object]:
    return {key: value for key, value in values.items() if value}


def _annotations(part: Part) -> dict[str, str]:
    metadata = {
        "name": part.path.rpartition("/")[2],
        "mode": _MODE,
        "uid": 0,
        "gid": 0,
        "size": part.size,
        "mtime": _EPOCH,
        "typeflag": 0,
    }
    return {_FILEPATH: part.path, _METADATA: document(metadata).decode()}


def _kind(part: Part) -> str:
    name = part.path.rpartition("/")[2].lower()
    suffix = f".{name.rpartition('.')[2]}" if "." in name else name
    for kind, known in _KINDS.items():
        if name in known or suffix in known:
            return kind
    return "weight" if part.size >= _LARGE else "code"
