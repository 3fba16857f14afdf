"""What registries and token servers say in the body of an error (OCI distribution-spec, "Error Codes"; RFC 6749 §5.2).

The words come from outside: they explain an answer to a person and decide nothing, which is the HTTP status' part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from modelmount.errors import BadArtifact
from modelmount.oci.manifest import strict_json

MAX_BODY_BYTES = 64 << 10
"""A body beyond this is a page, not an error; nothing of it is read."""
MAX_DIAGNOSTICS = 8
MAX_MESSAGE_CHARACTERS = 300
LOOKED_AT_CHARACTERS = 8 * MAX_MESSAGE_CHARACTERS

_QUERY = re.compile(r"(\w://[^\s?]*)\?\S*", re.ASCII)
_TOKEN = re.compile(r"\beyJ[\w-]{6,}\.[\w-]*(?:\.[\w-]*)*", re.ASCII)
"""A JSON Web Token, whoever it is for (RFC 7515: its header is the base64 of an object)."""
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One error. `code` is upper case, such as `MANIFEST_UNKNOWN`, and empty where the other side gave none that is
    usable; `message` is one printable line of bounded length, possibly empty. Never both are empty.
    """

    code: str
    message: str

    def __str__(self) -> str:
        """For a sentence: `DENIED: requested access to the resource is denied`."""
        return ": ".join(part for part in (self.code, self.message) if part)


def parse(body: bytes) -> tuple[Diagnostic, ...]:
    """What the body says, at most `MAX_DIAGNOSTICS` errors; none where it is anything else. Never raises.

    The specification's free-form `detail` is left out: registries put tokens and stack traces there.
    """
    if len(body) > MAX_BODY_BYTES:
        return ()
    try:
        document = strict_json(body)
    except BadArtifact:
        return ()
    if not isinstance(document, dict):
        return ()
    errors = document.get("errors")
    if isinstance(errors, list):
        found = [_read(error.get("code"), error.get("message")) for error in errors if isinstance(error, dict)]
    else:
        found = [_read(document.get("error"), document.get("error_description"))]
    return tuple(diagnostic for diagnostic in found if diagnostic is not None)[:MAX_DIAGNOSTICS]


def texts(body: bytes) -> tuple[str, ...]:
    """All that the body says, whole and as it is meant: a part of a text, or its escapes, may hide what it repeats."""
    if len(body) > MAX_BODY_BYTES:
        return ()
    try:
        return tuple(_texts(strict_json(body)))
    except BadArtifact:
        return ()


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _read(code: object, message: object) -> Diagnostic | None:
    known = code.upper() if isinstance(code, str) else ""
    shown = _line(message) if isinstance(message, str) else ""
    if not _CODE.fullmatch(known):
        known = ""
    return Diagnostic(known, shown) if known or shown else None


def _line(message: str) -> str:
    """One line that prints as it reads: an error of another machine goes into logs and events. Signatures of addresses
    and tokens stay out. Of a long message the rest isn't even looked at: what looks for these takes the square of its
    length, and stops everything else meanwhile.
    """
    begun = message[:LOOKED_AT_CHARACTERS]
    printable = "".join(character if character.isprintable() else " " for character in begun)
    line = _TOKEN.sub("…", _QUERY.sub(r"\1?…", " ".join(printable.split())))
    if len(line) <= MAX_MESSAGE_CHARACTERS and begun == message:
        return line
    return line[:MAX_MESSAGE_CHARACTERS] + "…"
