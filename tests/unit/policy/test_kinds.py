"""Files by name and content; names that lie are found out."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from typing import Any, get_args

import numpy as np
import pytest
import safetensors.numpy

from modelmount.policy import Kind, by_content, by_name
from modelmount.policy.kinds import HEAD_BYTES
from modelmount.policy.pickles import MOST_ZIP_ENTRIES

TENSORS = safetensors.numpy.save({"a": np.zeros(3, np.float32)})


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("hello",)


def zip_of(*entries: tuple[str, bytes], compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def torch_file(*, weights: int = 100, first: bool = True) -> bytes:
    """As torch.save writes it since 1.6: entries stored, the pickle first; or anywhere, as torch reads it."""
    pickled = ("archive/data.pkl", pickle.dumps(Harmful(), 2))
    others = [("archive/byteorder", b"little"), ("archive/version", b"3\n")]
    entries = [("archive/data/0", bytes(weights)), *others]
    return zip_of(*([pickled, *entries] if first else [*others, ("weights/0", bytes(weights)), pickled]))


def torch_tar() -> bytes:
    """As torch.save wrote it before 0.2."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            content = pickle.dumps(Harmful(), 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def named_twice() -> bytes:
    """A zip whose directory, by which torch looks for entries, names them otherwise than the entries themselves do."""
    whole = zip_of(("archive/data.pkl", pickle.dumps(Harmful(), 2)), ("archive/version", b"3\n"))
    return whole.replace(b"archive/data.pkl", b"archive/data.txt", 1)


def tar_of(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def renamed_tar() -> bytes:
    """Another header says what the entry is called."""
    record = b"15 path=pickle\n"
    extended = tarfile.TarInfo("header")
    extended.type = tarfile.XHDTYPE
    return tar_of((extended, record), (tarfile.TarInfo("notes"), pickle.dumps(Harmful(), 2)))


def tar_behind(first: tarfile.TarInfo, size: bytes) -> bytes:
    """A tar whose first entry has this size, in the spelling that some readers know."""
    whole = bytearray(tar_of((first, b""), (tarfile.TarInfo("pickle"), pickle.dumps(Harmful(), 2))))
    whole[124:136] = size
    whole[148:156] = b" " * 8
    whole[148:156] = b"%06o\0 " % sum(whole[:512])
    return bytes(whole)


def directory(name: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = tarfile.DIRTYPE
    return made


def old_torch_file() -> bytes:
    """As torch.save wrote it until 1.5: pickles behind each other, the magic number first."""
    return b"".join(
        pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, Harmful())
    )


def array(value: object, kind: type) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(value, dtype=kind))
    return buffer.getvalue()


def arrays(*, compressed: bool = False, **named: object) -> bytes:
    buffer = io.BytesIO()
    found: dict[str, Any] = {name: np.asarray(value) for name, value in named.items()}
    (np.savez_compressed if compressed else np.savez)(buffer, **found)
    return buffer.getvalue()


def hidden(descr: bytes) -> bytes:
    """An array of objects whose header hides it from a search for `O`."""
    header = b"{'descr': " + descr + b", 'fortran_order': False, 'shape': (1,), }\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickle.dumps([Harmful()])


def tensors_with_a_header_of(length: int) -> bytes:
    """A safetensors file whose header has so many bytes."""
    shortest = safetensors.numpy.save({"a": np.zeros(3, np.float32)}, {"filler": ""})
    found = safetensors.numpy.save(
        {"a": np.zeros(3, np.float32)}, {"filler": "x" * (length - int.from_bytes(shortest[:8], "little"))}
    )
    assert int.from_bytes(found[:8], "little") == length
    return found


CALLS = b"cbuiltins\nprint\n(Vhello\ntR."
PADDED = [
    pytest.param(b"0" * 5000 + CALLS, id="five thousand opcodes"),
    pytest.param(b"N0" * (HEAD_BYTES // 2) + CALLS, id="a mebibyte of opcodes"),
    pytest.param(b"X" + (2 << 20).to_bytes(4, "little") + bytes(2 << 20) + b"0" + CALLS, id="two mebibytes of text"),
    pytest.param(b"V" + b"x" * (2 << 20) + b"\n0" + CALLS, id="a line of two mebibytes"),
    pytest.param(b"X" + (HEAD_BYTES - 7).to_bytes(4, "little") + bytes(HEAD_BYTES - 7) + CALLS, id="up to the edge"),
    pytest.param(b"\x95" + bytes(8) + CALLS, id="a frame without a protocol"),
    pytest.param(b"\x80\x01" + CALLS, id="a mark of protocol 1"),
    pytest.param(b"(I1\nibuiltins\nexit\0", id="a last line without an end"),
]


@pytest.mark.parametrize("content", PADDED)
def test_a_pickle_that_hides_behind_its_first_bytes_is_one(content: bytes) -> None:
    assert by_content("model.safetensors", content[:HEAD_BYTES], len(content)) == "pickle"


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x28280, 0x140050, 0x140070])
def test_the_length_of_a_safetensors_header_may_look_like_a_pickle_and_is_none(length: int) -> None:
    data = tensors_with_a_header_of(length)
    assert by_content("model.safetensors", data[:HEAD_BYTES], len(data)) == "safetensors"


def test_a_pickle_that_looks_like_safetensors_is_a_pickle() -> None:
    # PROTO 2, then a text of the bytes up to the brace, and after it what calls.
    data = b'\x80\x02X\x04\0\0\0\0{"a0' + CALLS
    assert data[8:9] == b"{"
    data += bytes(0x04580280)
    assert by_content("model.safetensors", data[:HEAD_BYTES], len(data)) == "pickle"


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("LICENSE", b"copyright (c) us\nall of us\nRedistribution and use\n", "text"),
        ("blanks", b"L" + b" " * (HEAD_BYTES - 10) + b"x\n", "text"),
        ("notes", b"cat\ndog\nRunning text\n", "pickle"),  # imports `dog` from `cat`, and calls: the worse kind
        ("big.txt", b"[PAD]\n" + b"word\n" * 400_000, "text"),
        ("list.csv", b"Text,label\n" * 200_000, "text"),
    ],
)
def test_text_stays_text(name: str, text: bytes, kind: Kind) -> None:
    assert by_content(name, text[:HEAD_BYTES], len(text)) == kind


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
        ("x.npy", array([1, 2], np.int64), "numpy"),
        ("x.npy", array([[1.0]], np.float32), "numpy"),
        ("x.npy", array(["a"], np.str_), "numpy"),
        ("x.npy", array([{}], object), "pickle"),
        ("x.bin", hidden(b"'|O'"), "pickle"),
        ("x.bin", hidden(b"'\\x4f'"), "pickle"),
        ("x.bin", hidden(b"'ob' 'ject'"), "pickle"),
        ("x.bin", hidden(b"[('a', '|O8')]"), "pickle"),
        ("x.npz", arrays(a=[1, 2], b=[[0.5]]), "numpy"),
        ("x.npz", arrays(a=[1, 2], compressed=True), "other"),  # what is compressed isn't looked into
        ("x.npz", arrays(a=[1, 2], b=np.array([{}], object)), "pickle"),
        ("x.npz", arrays(a=np.zeros(2 << 20, np.uint8), b=np.array([{}], object)), "pickle"),  # behind the head
        ("model.onnx", b"\x08\x0a\x12\x07pytorch" + bytes(50), "onnx"),
        ("model.onnx", b"\x08\x0a\xff" + bytes(50), "other"),
        ("config.json", json.dumps({"auto_map": {"AutoModel": "other/repo--modeling.Model"}}).encode(), "code"),
        ("config.json", b'{"auto\\u005fmap": {}}', "code"),
        ("config.json", b'{"auto_map": {}, "x": [NaN, -Infinity, 1e999]}', "code"),
        ("config.json", b'{"auto_map": {}, "x": ' + b"9" * 5000 + b"}", "code"),
        ("config.json", b'{"auto_map": {}, "auto_map": null}', "code"),
        ("config.json", b'{"custom_pipelines": {"x": {"impl": "other/repo--pipe.Pipe"}}}', "code"),
        ("config.json", b'{"x": ' + b"[" * 50_000, "code"),  # in doubt
        ("config.json", b"[1, NaN]", "text"),
        ("config.json", json.dumps({"x": {"auto_map": 1}}).encode(), "text"),
        ("tokenizer_config.JSON", b'{"a": "' + b"x" * (1 << 20) + b'", "auto_map": {}}', "text"),
        *((f"p{protocol}.safetensors", pickle.dumps(Harmful(), protocol), "pickle") for protocol in range(6)),
        ("model.safetensors", torch_file(), "pickle"),
        ("model.bin", torch_file(weights=3 << 20), "pickle"),
        ("model.bin", torch_file(weights=3 << 20, first=False), "pickle"),  # in doubt
        ("model.bin", torch_tar(), "pickle"),
        ("model.bin", named_twice(), "pickle"),
        ("model.bin", renamed_tar(), "pickle"),
        ("model.bin", tar_behind(tarfile.TarInfo("a"), b"\x80" + bytes(11)), "pickle"),
        ("model.bin", tar_behind(tarfile.TarInfo("a"), b"+0".ljust(12)), "pickle"),
        ("model.bin", tar_behind(directory("a"), b"00000002000\0"), "pickle"),
        ("model.bin", tar_behind(tarfile.TarInfo("a"), b"\xff" * 12), "pickle"),
        ("data.tar", tar_of((tarfile.TarInfo("a.txt"), b"text")), "other"),
        ("model.bin", old_torch_file(), "pickle"),
        ("lib.bin", zip_of(("a/b.py", b"print()")), "code"),
        ("model.bin", zip_of(("config.json", b"{}"), ("model.weights.h5", b"")), "keras"),
        ("data.zip", zip_of(("a.txt", b"text"), compressed=True), "other"),
        ("pytorch_model.PT", b"harmless", "pickle"),
        ("modeling.py", b"print()", "code"),
        ("lib", b"\x7fELF" + bytes(100), "code"),
        ("run", b"#!/bin/sh\n", "code"),
        ("model.h5", b"", "keras"),
        ("model.bin", b"\x89HDF\r\n\x1a\n" + bytes(100), "keras"),
        ("model.bin", bytes(2048) + b"\x89HDF\r\n\x1a\n" + bytes(100), "keras"),
        ("cache", b"\x42\x0d\r\n" + bytes(12), "code"),
        ("lib", b"\xcf\xfa\xed\xfe" + bytes(100), "code"),
        ("module", b"\0asm\1\0\0\0", "code"),
        ("run", b"MZ" + bytes(100), "code"),
    ],
)
def test_kinds(name: str, content: bytes, kind: Kind) -> None:
    assert by_content(name, content[:HEAD_BYTES], len(content)) == kind


def test_a_zip_with_very_many_entries_is_not_looked_through() -> None:
    """Each could have a name of 64 KiB that the next ones are a part of: looking would take minutes."""
    few, many = (zip_of(*((f"{n}.txt", b"\0") for n in range(count))) for count in (100, MOST_ZIP_ENTRIES + 1))
    assert len(many) < HEAD_BYTES
    assert [by_content("x", each, len(each)) for each in (few, many)] == ["other", "pickle"]


def test_names_alone_convict_and_never_acquit() -> None:
    assert [by_name(name) for name in ("a/b.pkl", "x.PY", "x.safetensors", "x.json")] == ["pickle", "code", None, None]


@pytest.mark.parametrize(
    "data", [bytes([n]) * 40 for n in range(0, 256, 5)] + [b"(" * 4096, b"c\n\n" * 900, b"PK\x03\x04" * 9000]
)
def test_any_bytes_have_a_kind(data: bytes) -> None:
    assert by_content("x", data[:HEAD_BYTES], len(data)) in get_args(Kind)
