"""How a registry wants to be asked: the WWW-Authenticate header (RFC 9110 §11.3 to §11.6.1).

The grammar is ambiguous by itself: a comma separates the parameters of a challenge and challenges from each other.
What follows a comma is a parameter when a token and `=` with a value come, else the scheme of a new challenge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MAX_CHARACTERS = 16 << 10
"""Of all values together. A longer one is read up to there."""
MAX_CHALLENGES = 16
MAX_PARAMETERS = 32
"""In one challenge; the rest is dropped."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_END = r"(?=[ \t]*(?:,|\Z))"
_SCHEME = re.compile(rf"({_TOKEN})(?:[ \t]+([A-Za-z0-9._~+/-]+=*){_END}|{_END}|(?=[ \t]+{_TOKEN}[ \t]*=))", re.ASCII)
_QUOTED = r'"((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*)"'
# Registries in the field leave out the quotes around values that are no tokens, such as URLs.
_PLAIN = r"([!#-+\--<>-~][!#-+\--~]*)"
_PARAMETER = re.compile(rf"({_TOKEN})[ \t]*=[ \t]*(?:{_QUOTED}|{_PLAIN})", re.ASCII)
_FOLD = re.compile(r"[\r\n]+[ \t]*")
_SEPARATORS = re.compile(r"[ \t,]*")
_QUOTED_PAIR = re.compile(r"\\(.)")
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate. `scheme` and the names of parameters are in lower case, values as they came; of a name
    given twice the first counts. `token68` is the other form that a challenge may have, used by Negotiate.
    """

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=lambda: _NONE, hash=False)
    token68: str = ""


def parse(header_values: Iterable[str]) -> tuple[Challenge, ...]:
    """All challenges of all WWW-Authenticate headers of an answer, in order. Never raises: a header counts up to where
    it stops making sense, and unknown schemes and parameters are kept for whoever knows them.
    """
    found: list[Challenge] = []
    left = MAX_CHARACTERS
    for value in header_values:
        found += _read(_FOLD.sub(" ", value[:left]))
        left -= min(left, len(value))
    return tuple(found[:MAX_CHALLENGES])


def _read(value: str) -> list[Challenge]:
    found: list[Challenge] = []
    parameters: dict[str, str] = {}
    position = 0
    while True:
        position = _past_separators(value, position)
        if match := _PARAMETER.match(value, position):
            if not found:
                break
            name, quoted, plain = match.groups()
            if len(parameters) < MAX_PARAMETERS:
                parameters.setdefault(name.lower(), plain if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted))
        elif match := _SCHEME.match(value, position):
            parameters = {}
            found.append(Challenge(match[1].lower(), MappingProxyType(parameters), match[2] or ""))
        else:
            break
        position = match.end()
    return found


def _past_separators(value: str, position: int) -> int:
    """Empty elements of a list mean nothing (RFC 9110 §5.6.1)."""
    match = _SEPARATORS.match(value, position)
    return match.end() if match else position
