"""What weights say at their beginning, and that nothing they say is an error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelmount.packaging import headers
from modelmount.packaging.files import File
from tests.unit.packaging.samples import TINY_GGUF, files, gguf, safetensors, text


def file_of(tmp_path: Path, data: bytes) -> File:
    (tmp_path / "weights").write_bytes(data)
    (only,) = files(tmp_path)
    return only


def test_what_the_safetensors_library_writes_is_counted(tmp_path: Path) -> None:
    save_file(
        {"a": np.zeros((3, 4), dtype=np.float32), "b": np.zeros(5, dtype=np.float16)},
        tmp_path / "weights",
        metadata={"format": "np"},
    )
    (only,) = files(tmp_path)
    found = headers.safetensors(only)
    assert found is not None
    assert (found.parameters, dict(found.types)) == (17, {"F32": 12, "F16": 5})


def test_a_gguf_header_is_counted_and_quoted(tmp_path: Path) -> None:
    found = headers.gguf(file_of(tmp_path, TINY_GGUF))
    assert found is not None
    assert found.parameters == 4096 * 500 + 10
    assert found.words == {
        "general.architecture": "llama",
        "general.name": "Tiny Llama",
        "general.license": "apache-2.0",
        "general.file_type": "Q4_K_M",
    }


ENDLESS = b'{"a": {"dtype": "F32", "shape": [1e999]}}'
STRANGE = json.dumps({"a": {"dtype": 1, "shape": ["x"]}}).encode()
HEADER = b'{"a": {"dtype": "F32", "shape": [1]}}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        (1 << 62).to_bytes(8, "little"),
        len(HEADER).to_bytes(8, "little") + HEADER[:-1],
        (2).to_bytes(8, "little") + b"[]",
        (11).to_bytes(8, "little") + b'{"a": null}',
        len(STRANGE).to_bytes(8, "little") + STRANGE,
        len(ENDLESS).to_bytes(8, "little") + ENDLESS,
        safetensors({"a": ("F32", [1 << 62, 4])}),
        safetensors({"a": ("F32", [-1])}),
        safetensors({"a": ("F" * 1000, [1])}),
    ],
)
def test_what_is_no_safetensors_file_says_nothing(tmp_path: Path, data: bytes) -> None:
    assert headers.safetensors(file_of(tmp_path, data)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGU",
        b"GGML" + TINY_GGUF[4:],
        TINY_GGUF[:200],
        TINY_GGUF[:-1],
        gguf([], [], version=1),
        gguf([("k", 99, b"")], []),
        gguf([("k", 9, b"\x09\0\0\0" + b"\xff" * 8)], []),
        gguf([("k", 9, b"\x08\0\0\0" + b"\xff" * 8)], []),
        gguf([("k", 8, b"\xff" * 8)], []),
        gguf([], [[1] * 9]),
        gguf([], [[(1 << 64) - 1] * 8]),
        b"GGUF\x03\0\0\0" + b"\xff" * 16,
    ],
)
def test_what_is_no_gguf_file_says_nothing(tmp_path: Path, data: bytes) -> None:
    assert headers.gguf(file_of(tmp_path, data)) is None


def test_only_the_beginning_is_read(tmp_path: Path) -> None:
    with (tmp_path / "weights").open("wb") as sparse:
        sparse.write(safetensors({"a": ("F32", [2, 2])}))
        sparse.truncate(1 << 40)
    (only,) = files(tmp_path)
    found = headers.safetensors(only)
    assert found is not None
    assert found.parameters == 4


def test_a_long_string_is_passed_over(tmp_path: Path) -> None:
    data = gguf([("tokenizer.chat_template", 8, text("x" * 100_000)), ("general.name", 8, text("n"))], [])
    found = headers.gguf(file_of(tmp_path, data))
    assert found is not None
    assert found.words == {"general.name": "n"}
