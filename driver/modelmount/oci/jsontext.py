"""JSON of strangers, read without going as deep as they like."""

from __future__ import annotations

import json
import re
from typing import Any, Final

MAX_DEPTH: Final = 100
"""Objects and lists within each other. A reader that recurses until the stack ends leaves none for what else may run
there, such as the finalizer of an object that happens to be collected.
"""

_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


class TooDeep(ValueError):
    """More than MAX_DEPTH objects and lists within each other."""


def loads(text: str | bytes, **options: Any) -> Any:
    """`json.loads`, which takes `options`; raises TooDeep, a ValueError, before it begins."""
    check_depth(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return json.loads(text, **options)


def check_depth(data: bytes) -> None:
    """Raise TooDeep, before another reader begins."""
    if _is_deep(data):
        raise TooDeep(f"it is nested deeper than {MAX_DEPTH} levels")


def _is_deep(data: bytes) -> bool:
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    outside = _STRING.sub(b"", data) if b"\\" in data else b"".join(data.split(b'"')[::2])
    depth = 0
    for byte in outside.translate(None, _NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False
