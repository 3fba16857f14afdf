"""Docker's credential helpers: programs that a docker configuration names, and that the node has.

Protocol (docker/docker-credential-helpers): `docker-credential-<name> get`, the server on standard input, JSON with
`Username` and `Secret` on standard output; the user name `<token>` says that the secret is an identity token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from modelmount.errors import Unavailable
from modelmount.oci import jsontext
from modelmount.system import programs

MAX_BYTES: Final = 1 << 20
KEPT_SECONDS: Final = 60.0
"""Helpers don't say how long their answers are good."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NOT_FOUND: Final = b"credentials not found"
_TOKEN_USER: Final = "<token>"


def ask(directory: Path, name: str, server: str, what: str, seconds: float) -> dict[str, object]:
    """What helper `name` of `directory` has for `server`, as an entry of `auths`; empty where it has nothing.

    `what` names the configuration. Raises Unavailable where it can't be asked, or answers nonsense.
    """
    if not _NAME.fullmatch(name):
        raise Unavailable(f"{what} names a credential helper {name[:64]!a}, which can't be a program's name")
    program = directory / f"docker-credential-{name}"
    try:
        output = programs.run(program, ["get"], server.encode(), seconds=seconds, most_bytes=MAX_BYTES)
    except programs.ProgramError as e:
        raise Unavailable(f"the credential helper {program} of {what} {e}; the admin has to put it right") from e
    if output.status != 0:
        if _NOT_FOUND in output.text.lower():
            return {}
        raise Unavailable(
            f"the credential helper {program} of {what} failed with status {output.status}; try it by hand on the node"
        )
    try:
        document = jsontext.loads(output.text)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, KeyError, TypeError):
        username = secret = None  # not chained: the parser's error carries the whole text
    if not isinstance(username, str) or not isinstance(secret, str):
        raise Unavailable(f"the credential helper {program} of {what} answered nothing that can be used")
    if username == _TOKEN_USER:
        return {"identitytoken": secret}
    return {"username": username, "password": secret} if username or secret else {}
