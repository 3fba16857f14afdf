"""Exit codes: what a script can tell apart. The table in `--help` and in the documentation is made from here."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from modelmount import errors


class Exit(IntEnum):
    """A command's outcome as its process's exit code."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    NO_ACCESS = 4
    BAD_MODEL = 5
    NO_SPACE = 6
    UNAVAILABLE = 7
    INTERRUPTED = 130


MEANINGS: Mapping[Exit, str] = {
    Exit.OK: "done",
    Exit.FAILURE: "failed on this machine; doctor: something must be fixed",
    Exit.USAGE: "wrong command line, reference or configuration",
    Exit.NOT_FOUND: "no such model in the registry, or no such mount",
    Exit.NO_ACCESS: "the registry wants a credential, or refuses the one it got",
    Exit.BAD_MODEL: "the model is broken, unsupported, or came with wrong bytes",
    Exit.NO_SPACE: "not enough disk space",
    Exit.UNAVAILABLE: "a registry or the network does not answer; try again",
    Exit.INTERRUPTED: "interrupted; what was pulled is kept",
}

CODES: Mapping[type[errors.ModelMountError], Exit] = {
    errors.ModelMountError: Exit.FAILURE,
    errors.InvalidRequest: Exit.USAGE,
    errors.NotFound: Exit.NOT_FOUND,
    errors.Unauthenticated: Exit.NO_ACCESS,
    errors.Forbidden: Exit.NO_ACCESS,
    errors.Conflict: Exit.FAILURE,
    errors.Precondition: Exit.FAILURE,
    errors.BadArtifact: Exit.BAD_MODEL,
    errors.UnpackingFailed: Exit.BAD_MODEL,
    errors.IntegrityError: Exit.BAD_MODEL,
    errors.Pending: Exit.UNAVAILABLE,
    errors.Unavailable: Exit.UNAVAILABLE,
    errors.NoSpace: Exit.NO_SPACE,
    errors.Cancelled: Exit.INTERRUPTED,
    errors.Internal: Exit.FAILURE,
}
"""By class; a class that isn't listed has the code of its nearest listed ancestor."""


def code_of(error: errors.ModelMountError) -> Exit:
    """The exit code that stands for `error`."""
    return next(CODES[ancestor] for ancestor in type(error).__mro__ if ancestor in CODES)


def table() -> str:
    """The codes and their meanings, a line each."""
    return "\n".join(f"{code.value:>5}  {meaning}" for code, meaning in MEANINGS.items())
