"""Tokens of a pod's service account, as the kubelet makes them for `tokenRequests` of the CSIDriver object: each is for
an audience, and shown to the registries only that the admin gives this audience.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelmount.errors import InvalidRequest
from modelmount.oci import jsontext
from modelmount.registry.credentials.base import Credential

MAX_CHARACTERS = 1 << 20


def find(tokens: str, audience: str) -> Credential | None:
    """The credential for a registry with this audience; None where it has none, or the kubelet sent no token for it.

    `tokens` is JSON: audience to `{"token", "expirationTimestamp"}`. Raises InvalidRequest, without anything of it.
    """
    if not tokens or not audience:
        return None
    try:
        document = jsontext.loads(tokens) if len(tokens) <= MAX_CHARACTERS else None
    except ValueError:
        document = None  # not chained: the parser's error carries the whole text
    if not isinstance(document, dict):
        raise InvalidRequest("the service account's tokens aren't JSON as the kubelet writes it")
    entry = document.get(audience)
    if entry is None:
        return None
    token = entry.get("token") if isinstance(entry, Mapping) else None
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidRequest(f"the service account's token for the audience {audience!a} can't be used")
    return Credential(account_token=token)
