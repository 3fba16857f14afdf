"""What kind of file something is: by its name where that is enough to distrust it, and by its first bytes.

Lists of bad opcodes have a history of being got round (CVE-2025-1716 and ten more of picklescan), so nothing here looks
for harmful pickles: any pickle is one, whatever its name (`pickles`).
"""

from __future__ import annotations

import itertools
import json
from typing import Final, Literal

from modelmount.policy import pickles

Kind = Literal["safetensors", "gguf", "onnx", "numpy", "text", "pickle", "code", "keras", "other"]

HEAD_BYTES: Final = 1 << 20
"""So much of a file decides."""
_MAX_SAFETENSORS_HEADER: Final = 100_000_000
_BY_SUFFIX: Final[dict[str, Kind]] = {
    **dict.fromkeys(pickles.SUFFIXES, "pickle"),
    **dict.fromkeys((".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".exe", ".jar"), "code"),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), "keras"),
}
_PROGRAMS: Final = (
    b"\x7fELF", b"#!", b"MZ", b"\0asm", b"dex\n", b"\x1bLua",
    b"\xca\xfe\xba\xbe", b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe",
)  # fmt: skip
"""ELF, scripts, PE, WebAssembly, Dalvik, Lua; Java and universal Mach-O; Mach-O of both widths and byte orders."""
_NAMES_OF_CODE: Final = frozenset({"auto_map", "custom_pipelines"})
"""Keys of a config of Transformers."""
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_HDF5_FIRST_OFFSET: Final = 512
_ONNX_VERSIONS: Final = range(3, 32)
_ONNX_NEXT: Final = frozenset({0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42})
"""Tags of what may follow the version in a ModelProto (onnx.proto)."""


def by_name(name: str) -> Kind | None:
    """The kind that a name admits to; None where only the content can tell."""
    lowered = name.lower()
    return next((kind for suffix, kind in _BY_SUFFIX.items() if lowered.endswith(suffix)), None)


def by_content(name: str, head: bytes, size: int) -> Kind:
    """The kind of a file with this name, first HEAD_BYTES and size. What its content says comes before its name, and a
    name that says pickle, code or keras is believed. In doubt it is the worse kind.
    """
    found = _dangerous(name, head, size) or by_name(name)
    if found is not None:
        return found
    if head[:4] == b"GGUF":
        return "gguf"
    if _is_safetensors(head, size):
        return "safetensors"
    if _is_onnx(name, head):
        return "onnx"
    if _is_numpy(head):
        return "numpy"
    return "text" if _is_text(head, size) else "other"


def _dangerous(name: str, head: bytes, size: int) -> Kind | None:
    if head.startswith(b"PK\x03\x04"):
        return _of_zip(head, size)
    if head.startswith(_PROGRAMS) or _is_bytecode(head) or _names_code(name, head, size):
        return "code"
    if _is_hdf5(head):
        return "keras"
    if pickles.is_array_of_objects(head) or pickles.may_call(head, size) or _is_tar_of_pickles(head, size):
        return "pickle"
    return "pickle" if pickles.is_marked(head) and not _is_safetensors(head, size) else None


def _of_zip(head: bytes, size: int) -> Kind | None:
    """torch writes zips with a pickle in it, NumPy such with arrays, Keras such with HDF5."""
    kinds: set[Kind | None] = set()
    most = pickles.MOST_ZIP_ENTRIES + 1
    entries = list(itertools.islice(pickles.zip_entries(head), most))
    named = list(itertools.islice(pickles.zip_directory(head), most))
    if most in {len(entries), len(named)}:
        return "pickle"
    for name, data in (*entries, *((name, b"") for name in named)):
        if "/data/" in f"/{name}" or pickles.is_array_of_objects(data):
            kinds.add("pickle")
        kinds.add("keras" if name.endswith("model.weights.h5") else by_name(name))
    if "pickle" in kinds or not pickles.is_whole_zip(head, size):
        return "pickle"
    return next((kind for kind in ("code", "keras") if kind in kinds), None)


def _is_numpy(head: bytes) -> bool:
    """An array, or a zip of nothing but arrays that can be looked at."""
    if head.startswith(b"PK\x03\x04"):
        entries = list(pickles.zip_entries(head))
        return all(pickles.is_array_of_objects(data) is False for _, data in entries)
    return pickles.is_array_of_objects(head) is False


def _is_tar_of_pickles(head: bytes, size: int) -> bool:
    names = list(pickles.tar_names(head, size))
    return any(not name or name.removeprefix("./") == "pickle" or by_name(name) == "pickle" for name in names)


def _is_bytecode(head: bytes) -> bool:
    """Of Python: two bytes of version, an end of a line, flags (PEP 552)."""
    return head[2:4] == b"\r\n" and len(head) >= 8 and head[4] < 4 and head[5:8] == bytes(3)


def _names_code(name: str, head: bytes, size: int) -> bool:
    """Whether it is a config by which Transformers load code, perhaps of another repository. It is read as they do it,
    with `json`, which takes more for JSON than others: NaN, keys that come twice.
    """
    if not name.lower().endswith(".json"):
        return False
    if size > len(head):
        return any(b'"%s"' % key.encode() in head for key in _NAMES_OF_CODE)
    try:
        found = json.loads(head.decode(), parse_int=str, parse_float=str)
    except RecursionError:
        return True
    except ValueError:
        return False
    return isinstance(found, dict) and not _NAMES_OF_CODE.isdisjoint(found)


def _is_hdf5(head: bytes) -> bool:
    """At the beginning, or behind a block of the user's, at 512 times a power of two (HDF5 specification, level 0)."""
    at = 0
    while at < len(head):
        if head.startswith(_HDF5, at):
            return True
        at = 2 * at or _HDF5_FIRST_OFFSET
    return False


def _is_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 10:
        return False
    length = int.from_bytes(head[:8], "little")
    if length > min(_MAX_SAFETENSORS_HEADER, size - 8) or head[8:9] != b"{":
        return False
    header = head[8 : 8 + length]
    return len(header) < length or header.rstrip(b" ").endswith(b"}")


def _is_onnx(name: str, head: bytes) -> bool:
    """It has no magic: what is called so and begins as its message does."""
    return name.lower().endswith(".onnx") and (
        len(head) > 2 and head[0] == 0x08 and head[1] in _ONNX_VERSIONS and head[2] in _ONNX_NEXT
    )


def _is_text(head: bytes, size: int) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as e:
        return len(head) < size and e.start > len(head) - 4  # cut within a character
    return True
