"""Content digests (OCI image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelmount.errors import InvalidRequest

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_LENGTHS: Mapping[str, int] = {"sha256": 64, "sha512": 128}
_HASHERS: Mapping[str, Callable[[], _Hash]] = {"sha256": hashlib.sha256, "sha512": hashlib.sha512}
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)
_SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm that the specification registers and its value in lower-case hex: safe as a part of a path."""

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        """Raise InvalidRequest for another algorithm, another length, or anything but lower-case hex."""
        length = _HEX_LENGTHS.get(self.algorithm)
        if length is None:
            raise InvalidRequest(f"digest algorithm {_show(self.algorithm)} is not supported; use sha256 or sha512")
        if len(self.hex) != length or not _HEX.fullmatch(self.hex):
            raise InvalidRequest(f"a {self.algorithm} digest has {length} lower-case hex digits, not {_show(self.hex)}")

    def __str__(self) -> str:
        """`sha256:<hex>`, as registries and manifests write it."""
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read `<algorithm>:<hex>`. Raises InvalidRequest."""
        algorithm, colon, value = text.partition(":")
        if not colon:
            raise InvalidRequest(f"{_show(text)} is not a digest; write sha256:<64 hex digits>")
        return cls(algorithm, value)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The sha256 digest of `data`."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def hasher(self) -> _Hash:
        """A fresh hash object of this algorithm; its `hexdigest` compares with `hex`."""
        return _HASHERS[self.algorithm]()


def _show(text: str) -> str:
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
