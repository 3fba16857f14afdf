"""JSON of strangers, read without going as deep as they like."""

from __future__ import annotations

import json
from typing import Any, Final

MAX_DEPTH: Final = 100
"""Objects and lists within each other. A reader that recurses until the stack ends leaves none for what else may run
there, such as the finalizer of an object that happens to be collected.
"""

_NO_BRACKETS_OR_QUOTES: Final = bytes(set(range(256)) - set(b'[]{}"'))


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
    depth = 0
    for byte in _brackets(data):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _brackets(data: bytes) -> bytes:
    """Those outside strings."""
    # Without escapes each quote begins or ends a string. Of several backslashes each second one is just itself.
    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes side by side are a string without brackets, or the end of one and the beginning of the next: without
    # both, what else is inside of a string still is, and what is outside too.
    few = data.translate(None, _NO_BRACKETS_OR_QUOTES).replace(b'""', b"")
    return b"".join(few.split(b'"')[::2])
