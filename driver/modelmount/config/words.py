"""Types and values of the schema in an admin's words."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, Literal

_SHOWN_CHARACTERS = 80


def is_scalar(kind: Any) -> bool:
    """Whether a value of this type is one text, number or truth value: what an environment variable can hold as it
    is.
    """
    return typing.get_origin(kind) not in {list, tuple, dict}


def expected(kind: Any) -> str:
    """What a value of this type looks like, to follow "must be"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        bare, meta = arguments
        bounds = f"from {meta.ge}" if meta.gt is None else f"above {meta.gt} and up"
        return f"{expected(bare)} {bounds} to {meta.le}"
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in {list, tuple}:
        return (
            "a list of texts"
            if arguments[0] is str
            else f"a list with any of {', '.join(typing.get_args(arguments[0]))}"
        )
    if origin is dict:
        return "a table of tables"
    if origin in {types.UnionType, typing.Union}:
        return expected(arguments[0])
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def shown(value: Any) -> str:
    """Somebody's value in a message: quoted, escaped, cut."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
