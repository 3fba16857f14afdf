"""Files by name and content; names that lie are found out."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from modelmount.policy import Kind, by_content, by_name
from modelmount.policy.kinds import HEAD_BYTES

TENSORS = safetensors.numpy.save({"a": np.zeros(3, np.float32)})


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("hello",)


def torch_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Harmful()))
        archive.writestr("archive/data/0", bytes(100))
    return buffer.getvalue()


def array(value: object, kind: type) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(value, dtype=kind))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("model.safetensors", TENSORS, "safetensors"),
        ("renamed", TENSORS, "safetensors"),
        ("model.gguf", b"GGUF" + bytes(100), "gguf"),
        ("config.json", json.dumps({"a": 1}).encode(), "text"),
        ("merges.txt", "é".encode() * 5000, "text"),
        ("merges.txt", b"x" + "é".encode() * 5000, "text"),
        ("vocab.txt", b"cat\ndog\nfish\n", "text"),
        ("list.txt", b"(not a pickle)\n", "text"),
        ("empty", b"", "text"),
        ("tokenizer.model", bytes(range(256)), "other"),
        ("x.npy", array([1, 2], np.int64), "other"),
        ("x.npy", array([{}], object), "pickle"),
        *((f"p{protocol}.safetensors", pickle.dumps(Harmful(), protocol), "pickle") for protocol in range(6)),
        ("model.safetensors", torch_file(), "pickle"),
        ("pytorch_model.PT", b"harmless", "pickle"),
        ("modeling.py", b"print()", "code"),
        ("lib", b"\x7fELF" + bytes(100), "code"),
        ("run", b"#!/bin/sh\n", "code"),
        ("model.h5", b"", "keras"),
        ("model.bin", b"\x89HDF\r\n\x1a\n" + bytes(100), "keras"),
    ],
)
def test_kinds(name: str, content: bytes, kind: Kind) -> None:
    assert by_content(name, content[:HEAD_BYTES], len(content)) == kind


def test_names_alone_convict_and_never_acquit() -> None:
    assert [by_name(name) for name in ("a/b.pkl", "x.PY", "x.safetensors", "x.json")] == ["pickle", "code", None, None]


@pytest.mark.parametrize("data", [bytes([n]) * 40 for n in range(0, 256, 5)] + [b"(" * 4096, b"c\n\n" * 900])
def test_any_bytes_have_a_kind(data: bytes) -> None:
    assert by_content("x", data[:HEAD_BYTES], len(data)) in {"safetensors", "gguf", "text", "pickle", "other"}
