"""Which token servers a registry may send its clients to, with their credentials in hand.

The name of the token server comes from whoever answers in the registry's place; clients that believed it gave passwords
away (CVE-2020-15157, CVE-2026-48978).
"""

from __future__ import annotations

from modelmount.config import Settings
from modelmount.errors import Forbidden
from modelmount.registry import endpoint
from modelmount.transport.url import Url


def judge(settings: Settings, registry: str, realm: str, what: str) -> Url:
    """The token server's URL, if it is the registry's own host (on any port) or one that the admin trusts for it, and
    asked with no less than the registry's own TLS. `what` begins messages. Raises Forbidden.
    """
    home = endpoint.home(settings, registry)
    try:
        url = Url.parse(realm)
    except ValueError as e:
        raise Forbidden(f"{what}: {registry} names a token server that can't be asked: {e}") from e
    trusted = any(url.is_named(host) for host in endpoint.token_hosts(settings, registry))
    if not trusted and url.host != home.host:
        raise Forbidden(
            f"{what}: {registry} wants credentials to be shown to {url.authority}, which isn't its own host; if that "
            f"is right, the admin can add it to trusted_realms of {registry}"
        )
    if home.scheme == "https" and url.scheme != "https":
        raise Forbidden(
            f"{what}: {registry} wants credentials to be shown to {url.authority} without TLS; have its configuration "
            "fixed"
        )
    if url.is_address and not trusted and registry not in settings.registries:
        raise Forbidden(
            f"{what}: credentials are not shown to an address ({url.host}) unless the admin lists it in registries"
        )
    return url
