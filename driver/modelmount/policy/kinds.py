"""What kind of file something is: by its name where that is enough to distrust it, and by its first bytes.

Lists of bad opcodes have a history of being got round (CVE-2025-1716 and ten more of picklescan), so nothing here looks
for harmful pickles: any pickle is one, whatever its name.
"""

from __future__ import annotations

import pickletools
from typing import Final, Literal

Kind = Literal["safetensors", "gguf", "text", "pickle", "code", "keras", "other"]

HEAD_BYTES: Final = 4096
"""So much of a file decides."""
_MAX_SAFETENSORS_HEADER: Final = 100_000_000
_BY_SUFFIX: Final[dict[str, Kind]] = {
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill"), "pickle"),
    **dict.fromkeys((".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".exe", ".jar"), "code"),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), "keras"),
}
_PICKLE_PROTOCOLS: Final = range(2, 6)
_IMPORTS: Final = frozenset({"GLOBAL", "INST", "STACK_GLOBAL"})
_ENDS: Final = frozenset({"REDUCE", "BUILD", "OBJ", "NEWOBJ", "STOP"})


def by_name(name: str) -> Kind | None:
    """The kind that a name admits to; None where only the content can tell."""
    lowered = name.lower()
    return next((kind for suffix, kind in _BY_SUFFIX.items() if lowered.endswith(suffix)), None)


def by_content(name: str, head: bytes, size: int) -> Kind:
    """The kind of a file with this name, first HEAD_BYTES and size. What its content says comes before its name, and a
    name that says pickle, code or keras is believed.
    """
    found = _dangerous(head)
    if found is None:
        found = by_name(name)
    if found is not None:
        return found
    if head[:4] == b"GGUF":
        return "gguf"
    if (
        size >= 10
        and int.from_bytes(head[:8], "little") <= min(_MAX_SAFETENSORS_HEADER, size - 8)
        and head[8:9] == b"{"
    ):
        return "safetensors"
    return "text" if _is_text(head) else "other"


def _dangerous(head: bytes) -> Kind | None:
    if head[:1] == b"\x80" and len(head) > 1 and head[1] in _PICKLE_PROTOCOLS:
        return "pickle"
    if head[:4] == b"PK\x03\x04" and (b".pkl" in head or b"/data/" in head):
        return "pickle"  # what torch.save writes
    if head[:6] == b"\x93NUMPY" and (b"|O" in head[:256] or b"'O'" in head[:256]):
        return "pickle"  # an array of objects
    if head[:4] == b"\x7fELF" or head[:2] in {b"#!", b"MZ"}:
        return "code"
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "keras"
    return "pickle" if _is_old_pickle(head) else None


def _is_old_pickle(head: bytes) -> bool:
    """Protocols 0 and 1 have no mark: what reads as opcodes that import something and then call or end."""
    imports = False
    try:
        for opcode, _, _ in pickletools.genops(head):
            if opcode.name in _IMPORTS:
                imports = True
            elif opcode.name in _ENDS:
                return imports
    except (ValueError, UnicodeDecodeError, OverflowError):
        return False
    return False


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as e:
        return len(head) == HEAD_BYTES and e.start > HEAD_BYTES - 4  # cut within a character
    return True
