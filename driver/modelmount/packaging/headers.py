"""What weights say of themselves at their beginning: safetensors and GGUF headers.

Sources: huggingface/safetensors README "Format"; ggml docs/gguf.md, and llama.h for the file types. A header that can't
be read says nothing: what it would say is for people, and no reason not to push the file.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelmount.oci import jsontext
from modelmount.packaging.files import File, Readable

MAX_HEADER_BYTES: Final = 100_000_000
"""Of a safetensors file: the format's own limit."""
MAX_GGUF_BYTES: Final = 256 << 20
"""So much of a GGUF file is read at most: tokenizers of large vocabularies lie before what is wanted."""
_MAX_ENTRIES: Final = 1 << 20
_MAX_DIMENSIONS: Final = 64
"""Of a tensor, as in PyTorch; GGUF knows four."""
_MAX_GGUF_DIMENSIONS: Final = 8
_MAX_PARAMETERS: Final = 1 << 63
_MAX_WORD: Final = 200
_SPLIT_BYTES: Final = 1 << 16

# fmt: off
_FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12:
    "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20:
    "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28:
    "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
}
# fmt: on
"""What `general.file_type` means."""
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of a file, how many of them each type of number has, and what it says in words."""

    parameters: int
    types: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)


def safetensors(file: File) -> Weights | None:
    """What a safetensors file holds; None where it isn't one."""
    with file.open() as opened:
        length = int.from_bytes(_exactly(opened, 8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, file.size):
            return None
        try:
            tensors = jsontext.loads(_exactly(opened, length))
            types: Counter[str] = Counter()
            for name, tensor in tensors.items():
                if name != "__metadata__":
                    types[_word(tensor["dtype"])] += _parameters(tensor["shape"])
            _at_most(types.total(), _MAX_PARAMETERS)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
    return Weights(types.total(), dict(types))


def gguf(file: File) -> Weights | None:
    """What a GGUF file of version 2 or 3 holds; None where it isn't one."""
    with file.open() as opened:
        try:
            return _gguf(_Stream(opened))
        except (ValueError, EOFError, struct.error, UnicodeDecodeError):
            return None


def _gguf(stream: _Stream) -> Weights:
    if stream.take(4) != b"GGUF" or stream.number("I") not in {2, 3}:
        raise ValueError
    tensors, entries = stream.number("Q"), stream.number("Q")
    if max(tensors, entries) > _MAX_ENTRIES:
        raise ValueError
    values: dict[str, Any] = {}
    for _ in range(entries):
        key = stream.string()
        value = stream.value(stream.number("I"))
        if value is not None:
            values[key] = value
    parameters = 0
    for _ in range(tensors):
        stream.skip(stream.number("Q"))
        parameters += _parameters(
            [stream.number("Q") for _ in range(_at_most(stream.number("I"), _MAX_GGUF_DIMENSIONS))]
        )
        stream.skip(4 + 8)
    _at_most(parameters, _MAX_PARAMETERS)
    texts = {key: value for key, value in values.items() if isinstance(value, str) and key.startswith("general.")}
    words = {key: value for key, value in texts.items() if len(value) <= _MAX_WORD}
    number = values.get("general.file_type")
    if isinstance(number, int) and number in _FILE_TYPES:
        words["general.file_type"] = _FILE_TYPES[number]
    return Weights(parameters, words=words)


class _Stream:
    """Takes a header apart from its beginning, and no more of it than MAX_GGUF_BYTES."""

    def __init__(self, file: Readable) -> None:
        self._file, self._buffer, self._at, self._left = file, b"", 0, MAX_GGUF_BYTES

    def take(self, count: int) -> bytes:
        while len(self._buffer) - self._at < count:
            self._fill(count)
        self._at += count
        return self._buffer[self._at - count : self._at]

    def skip(self, count: int) -> None:
        """Past so many bytes, which are read nevertheless: not everything that is read can be sought in."""
        while count:
            step = min(count, _SPLIT_BYTES)
            self.take(step)
            count -= step

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        return self.take(_at_most(self.number("Q"), _SPLIT_BYTES)).decode()

    def value(self, kind: int) -> Any:
        """A scalar or a string of usual length; None for everything else."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            length = self.number("Q")
            if length > _SPLIT_BYTES:
                self.skip(length)
                return None
            return self.take(length).decode(errors="replace")
        if kind != _ARRAY:
            raise ValueError
        of, count = self.number("I"), self.number("Q")
        if of in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[of]}"))
        elif of == _STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise ValueError
        return None

    def _fill(self, count: int) -> None:
        data = self._file.read(min(max(count, _SPLIT_BYTES), self._left))
        if not data:
            raise EOFError
        self._left -= len(data)
        self._buffer, self._at = self._buffer[self._at :] + data, 0


def _exactly(file: Readable, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (piece := file.read(count - len(data))):
        data += piece
    return bytes(data)


def _word(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_WORD:
        raise ValueError
    return value


def _parameters(shape: object) -> int:
    """How many a tensor of this shape has."""
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError
    if not all(type(size) is int and 0 <= size <= _MAX_PARAMETERS for size in shape):
        raise ValueError
    return math.prod(shape)


def _at_most(count: int, most: int) -> int:
    if count > most:
        raise ValueError
    return count
