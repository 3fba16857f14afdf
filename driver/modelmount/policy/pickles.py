"""Whether an unpickler, torch or NumPy would run what a file says, as far as its first bytes tell. In doubt it would.

Sources: `pickletools` (the opcodes), torch `serialization.py` (`torch.save` writes a zip, and wrote tars and bare
pickles), `numpy.lib.format`, the zip file format (APPNOTE), POSIX for tar.
"""

from __future__ import annotations

import pickletools
import re
import tarfile
from collections.abc import Iterator
from typing import Final

_OPCODES: Final = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
MAX_OPCODES: Final = 1 << 16
"""What is a pickle for so long is one; nothing else is."""
SUFFIXES: Final = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill")

_PROTOCOLS: Final = range(6)
_IMPORTS: Final = frozenset({"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
_CALLS: Final = frozenset({"REDUCE", "BUILD", "OBJ", "NEWOBJ", "NEWOBJ_EX", "INST", "STOP"})
_NAMES: Final = re.compile(rb"[\w.\x80-\xff]+\n[\w.\x80-\xff]+[^\n]?\n")
"""Module and name of what is imported. Of a last line without an end some unpicklers drop the last byte."""
_NUMBERS: Final = {
    "INT": re.compile(rb"[-+\d_\0- ]+\n"),
    "LONG": re.compile(rb"[-+\d_L\0- ]+\n"),
    "FLOAT": re.compile(rb"[-+\d_.\0- einfatyEINFATY]+\n"),
    "GET": re.compile(rb"[-+\d_\0- ]+\n"),
    "PUT": re.compile(rb"[-+\d_\0- ]+\n"),
}
"""Lines that an unpickler reads as numbers, or fails."""
_COUNT_BYTES: Final = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_LINES: Final = {"GLOBAL": 2, "INST": 2}

_ZIP_ENTRY: Final = b"PK\x03\x04"
_ZIP_HEADER_BYTES: Final = 30
_ZIP_NAME_BYTES: Final = 1024
_ZIP_DIRECTORY: Final = b"PK\x01\x02"
_ZIP_DIRECTORY_BYTES: Final = 46
_LOOK_BYTES: Final = 1024
_ZIP_END: Final = b"PK\x05\x06"
MOST_ZIP_ENTRIES: Final = 4096
"""So many are looked at, of either kind; a zip with more of them counts as one that can't be looked through."""
_TAR_BLOCK: Final = 512
_TAR_PLAIN: Final = frozenset(
    {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE}
)

_NUMPY_MAGIC: Final = b"\x93NUMPY"
_PLAIN_ARRAY: Final = re.compile(
    rb"\{'descr': '[<>|=]?[a-zA-NP-Z]\d*(\[\d*[a-z]+\])?', 'fortran_order': (True|False), 'shape': \([\d, ]*\), \}\s*"
)
"""A header as NumPy writes it for arrays of numbers or characters (`O` are objects)."""


def is_marked(head: bytes) -> bool:
    """Whether it begins as pickles since protocol 2 do, which is two bytes: the length of a safetensors header may look
    the same.
    """
    return len(head) > 1 and head[0] == 0x80 and head[1] in _PROTOCOLS


def may_call(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` makes an unpickler import something and then call or end,
    before it meets what is no opcode; or goes on as a pickle for so long that nobody can tell.
    """
    is_cut = size > len(head)
    if not is_cut:
        head += b"\n"  # the last line of a file needs no end
    at, imports = 0, False
    for _ in range(MAX_OPCODES):
        opcode = _OPCODES.get(head[at]) if at < len(head) else None
        if opcode is None:
            return is_cut and at >= len(head)
        end = _end(opcode, head, at + 1)
        if end is None and _is_no_line(opcode.name, head[at + 1 :]):
            return False
        if end is None or end > len(head):  # it goes on behind the head, or in nothing
            return is_cut and (end is None or end <= size)
        argument = head[at + 1 : end]
        if (numbers := _NUMBERS.get(opcode.name)) is not None and not numbers.fullmatch(argument):
            return False
        if opcode.name in _IMPORTS:
            if opcode.name in _LINES and not _NAMES.fullmatch(argument):
                return False
            imports = True
        if opcode.name in _CALLS and imports:
            return True
        if opcode.name == "STOP":
            return False
        at = end
    return True


def _is_no_line(name: str, begun: bytes) -> bool:
    """Whether no argument in a line of its own begins like this. The length of a large safetensors header may begin
    with such an opcode, and then NULs and text follow.
    """
    numbers = _NUMBERS.get(name)
    return b"\0" in begun if name == "PERSID" else numbers is not None and not numbers.fullmatch(begun + b"\n")


def _end(opcode: pickletools.OpcodeInfo, head: bytes, at: int) -> int | None:
    """Where the opcode's argument ends that begins at `at`; None where the head doesn't tell."""
    if opcode.arg is None:
        return at
    if opcode.arg.n >= 0:
        return at + opcode.arg.n
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        for _ in range(_LINES.get(opcode.name, 1)):
            at = head.find(b"\n", at) + 1
            if not at:
                return None
        return at
    first = at + _COUNT_BYTES[opcode.arg.n]
    return first + int.from_bytes(head[at:first], "little") if first <= len(head) else None


def is_array_of_objects(head: bytes) -> bool | None:
    """Whether it is an array that NumPy unpickles; None for what is no array."""
    if not head.startswith(_NUMPY_MAGIC):
        return None
    first, count = (12, 4) if head[6:7] in {b"\x02", b"\x03"} else (10, 2)
    length = int.from_bytes(head[8 : 8 + count], "little")
    header = head[first : first + length]
    return len(header) < length or _PLAIN_ARRAY.fullmatch(header) is None


def zip_entries(head: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and first bytes of the entries that begin in the head of a zip; of compressed ones no bytes."""
    at = 0
    while (at := head.find(_ZIP_ENTRY, at)) >= 0 and at + _ZIP_HEADER_BYTES <= len(head):
        name_length, extra_length = (int.from_bytes(head[at + n : at + n + 2], "little") for n in (26, 28))
        first = at + _ZIP_HEADER_BYTES
        is_stored = head[at + 8 : at + 10] == b"\0\0"
        name = _end_of_name(head, first, name_length)
        stored = first + name_length + extra_length
        yield name, head[stored : stored + _LOOK_BYTES] if is_stored else b""
        at = first


def zip_directory(head: bytes) -> Iterator[str]:
    """The names in its directory, as far as that is in the head: torch looks for entries there, and doesn't compare
    those names with the entries' own.
    """
    at = 0
    while (at := head.find(_ZIP_DIRECTORY, at)) >= 0 and at + _ZIP_DIRECTORY_BYTES <= len(head):
        first = at + _ZIP_DIRECTORY_BYTES
        name_length = int.from_bytes(head[at + 28 : at + 30], "little")
        yield _end_of_name(head, first, name_length)
        at = first


def _end_of_name(head: bytes, first: int, length: int) -> str:
    """What decides of a name is ASCII and at its end; names may lie within each other, and have 64 KiB each."""
    return head[max(first, first + length - _ZIP_NAME_BYTES) : first + length].decode("latin-1")


def is_whole_zip(head: bytes, size: int) -> bool:
    """Whether all of it is in the head, so that every entry was seen."""
    return size <= len(head) and _ZIP_END in head


def tar_names(head: bytes, size: int) -> Iterator[str]:
    """Names of the entries of a tar that begin in the head, none for what is no tar; and an empty one at the end where
    there may be more behind the head, or behind a header that changes what the next ones say.

    Headers are read by `tarfile`, as torch does it: a reader of our own would see another tar.
    """
    at = 0
    while 0 <= at <= len(head) - _TAR_BLOCK:
        try:
            entry = tarfile.TarInfo.frombuf(head[at : at + _TAR_BLOCK], "utf-8", "surrogateescape")
        except tarfile.TarError:
            return
        if entry.type not in _TAR_PLAIN or entry.size < 0:
            yield ""
            return
        yield entry.name
        length = entry.size if entry.isreg() else 0
        at += _TAR_BLOCK + length + -length % _TAR_BLOCK
    if at and size > len(head):
        yield ""
