"""Plain Secrets: `username` and `password`, or `token`."""

from __future__ import annotations

from collections.abc import Mapping

from modelmount.errors import InvalidRequest
from modelmount.registry.credentials.base import Credential

KEYS = ("username", "password", "token")


def find(secrets: Mapping[str, str]) -> Credential | None:
    """The credential in the keys `username` and `password`, or else `token`, whatever the repository; None without
    them.

    A line end behind a value is dropped: it comes from `echo`, and no credential ends in one. Raises InvalidRequest
    naming the key, never what is in it.
    """
    username, password, token = (secrets.get(key, "").rstrip("\r\n") for key in KEYS)
    if username and password:
        if ":" in username:
            raise InvalidRequest("the Secret's key username has a colon in it, which registries can't take")
        return Credential(username=username, password=password)
    if username or password:
        missing = "password" if username else "username"
        raise InvalidRequest(f"the Secret has no {missing} beside its {'username' if username else 'password'}; add it")
    if not token:
        return None
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidRequest("the Secret's key token has characters in it that no token has; check how it was made")
    return Credential(registry_token=token)
