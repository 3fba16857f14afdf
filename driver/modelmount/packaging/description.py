"""What a model is, in a few words, as far as its own files say so: `config.json`, safetensors and GGUF headers.

Nothing is guessed from names, nothing is asked for, and nothing that can't be read is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelmount.errors import BadArtifact
from modelmount.oci.manifest import MAX_DOCUMENT_BYTES, strict_json
from modelmount.packaging import headers
from modelmount.packaging.files import File

_FORMATS: Final = ("safetensors", "gguf", "onnx", "pt", "pth", "bin", "h5", "msgpack", "tflite")
"""Suffixes of weights; the first of them that a model has is its format."""
_PART = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.gguf", re.ASCII)
_UNITS: Final = ((1e12, "t"), (1e9, "b"), (1e6, "m"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Description:
    """Each is empty where the files don't say it. `parameters` is as people write it: `8b`, `22.7m`."""

    name: str = ""
    family: str = ""
    architecture: str = ""
    format: str = ""
    parameters: str = ""
    precision: str = ""
    quantization: str = ""
    licenses: tuple[str, ...] = ()


def describe(files: Sequence[File]) -> Description:
    """Read the config and the headers of the weights; of each file the beginning only."""
    suffixes = {file.path.rpartition(".")[2].lower() for file in files}
    config = _config(files)
    tensors = [w for file in _nearest(files, ".safetensors") if (w := headers.safetensors(file)) is not None]
    ggufs = [w for file in _one_model(_nearest(files, ".gguf")) if (w := headers.gguf(file)) is not None]
    words = ggufs[0].words if ggufs else {}
    quantized = config.get("quantization_config")
    return Description(
        name=words.get("general.name", ""),
        family=_text(config, "model_type") or words.get("general.architecture", ""),
        # As modctl has it: the specification wants the kind of network, and that is the only one that is written down.
        architecture="transformer" if _text(config, "transformers_version") else "",
        format=next((suffix for suffix in _FORMATS if suffix in suffixes), ""),
        parameters=_human(sum(w.parameters for w in tensors or ggufs)),
        precision=(_text(config, "dtype") or _text(config, "torch_dtype") or _commonest(tensors)).removeprefix(
            "torch."
        ),
        quantization=(_text(quantized, "quant_method") if isinstance(quantized, dict) else "")
        or words.get("general.file_type", ""),
        licenses=tuple(filter(None, (words.get("general.license", ""),))),
    )


def _config(files: Sequence[File]) -> Mapping[str, Any]:
    for file in files:
        if file.path == "config.json" and file.size <= MAX_DOCUMENT_BYTES:
            try:
                document = strict_json(file.head(file.size))
            except BadArtifact:
                break
            return document if isinstance(document, dict) else {}
    return {}


def _nearest(files: Sequence[File], suffix: str) -> list[File]:
    """Those with the suffix that lie nearest to the top: the same weights may lie below in another form."""
    found = [file for file in files if file.path.endswith(suffix)]
    depth = min((file.path.count("/") for file in found), default=0)
    return [file for file in found if file.path.count("/") == depth]


def _one_model(files: list[File]) -> list[File]:
    """Several GGUF files are the parts of one model, or several models, of which nothing is said in common."""
    return files if len(files) == 1 or all(_PART.search(file.path) for file in files) else []


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) and len(value) <= 200 else ""


def _commonest(tensors: Sequence[headers.Weights]) -> str:
    """The type of most parameters, as PyTorch calls it where that differs."""
    types: Counter[str] = Counter()
    for weights in tensors:
        types.update(weights.types)
    kind = types.most_common(1)[0][0] if types else ""
    return {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(kind, kind.lower())


def _human(count: int) -> str:
    for unit, letter in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + letter
    return str(count) if count else ""
