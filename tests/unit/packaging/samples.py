"""Files of models as their own tools write them, small."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelmount.packaging import folder
from modelmount.packaging.files import File, Wanted


def files(top: Path) -> tuple[File, ...]:
    """All of them."""
    return folder.files(top, Wanted())


def safetensors(tensors: Mapping[str, tuple[str, Sequence[int]]], data: bytes = b"") -> bytes:
    """A header of these tensors, with `data` behind it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= {
        name: {"dtype": kind, "shape": list(shape), "data_offsets": [0, len(data)]}
        for name, (kind, shape) in tensors.items()
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def text(value: str) -> bytes:
    """A string of GGUF."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(values: Iterable[tuple[str, int, bytes]], tensors: Sequence[Sequence[int]], version: int = 3) -> bytes:
    """A GGUF file of these values (key, type, bytes) and shapes of tensors, without data."""
    listed = list(values)
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(listed))
    for key, kind, data in listed:
        out += text(key) + struct.pack("<I", kind) + data
    for number, shape in enumerate(tensors):
        out += text(f"blk.{number}.weight") + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        out += struct.pack("<IQ", 0, 0)
    return out


TINY_GGUF = gguf(
    [
        ("general.architecture", 8, text("llama")),
        ("general.name", 8, text("Tiny Llama")),
        ("general.license", 8, text("apache-2.0")),
        ("general.file_type", 4, struct.pack("<I", 15)),
        ("llama.rope.freq_base", 6, struct.pack("<f", 10000.0)),
        ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text("a") + text("b" * 70_000) + text("")),
        ("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 1000) + b"\0" * 4000),
        ("tokenizer.ggml.add_bos", 7, b"\1"),
    ],
    [(4096, 500), (10,)],
)
