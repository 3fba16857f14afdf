"""How hosts and proxies are spelled, wherever an admin names one."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from typing import Final

HOST_WORDS: Final = "host or host:port as it stands in references, in lower case, without scheme or path"
PROXY_WORDS: Final = (
    "a URL such as http://proxy.example.com:3128, without login (proxy_login_file) and path; https and SOCKS proxies "
    "are not spoken to"
)

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?", re.ASCII)

_WILD: Final = frozenset("*?[")
_ADDRESS: Final = re.compile(r"\[([0-9a-f:.]+)\](?=[:/*]|$)", re.ASCII)


def is_host(text: str) -> bool:
    """Whether it is what HOST_WORDS say."""
    match = _HOST.fullmatch(text)
    return match is not None and (match["port"] is None or 1 <= int(match["port"]) <= 65535)


def glob(pattern: str) -> str:
    """A glob of registries, or of what begins with one, as `fnmatch` has to read it: an IPv6 address in its brackets is
    that address in its usual spelling, and no choice of characters.
    """
    found = _split(pattern)
    return f"[[]{found[0]}]{found[1]}" if found is not None else pattern


def usual(text: str) -> str:
    """A registry, or what begins with one, with its IPv6 address in the usual spelling (RFC 5952)."""
    found = _split(text)
    return f"[{found[0]}]{found[1]}" if found is not None else text


def covers(pattern: str, name: str) -> bool:
    """Whether a glob of what begins with a registry is for `name`, which is spelled as `usual` does. `*` stands for
    slashes too, but what is before the glob's first slash is about the registry: `*.example.com/llm/*` isn't for
    `evil.com/x.example.com/llm/y`, which anybody may make.
    """
    readable = glob(pattern)
    host, slash, path = readable.partition("/")
    if not slash or _WILD.isdisjoint(host):
        return fnmatch.fnmatchcase(name, readable)
    registry, _, rest = name.partition("/")
    return fnmatch.fnmatchcase(registry, host) and (
        fnmatch.fnmatchcase(rest, path) or (host.endswith("*") and fnmatch.fnmatchcase(name, readable))
    )


def _split(text: str) -> tuple[str, str] | None:
    """The IPv6 address that it begins with, and the rest; None where it begins otherwise."""
    match = _ADDRESS.match(text)
    try:
        return (str(ipaddress.IPv6Address(match[1])), text[match.end() :]) if match is not None else None
    except ValueError:
        return None


def is_proxy(text: str) -> bool:
    """Whether it is what PROXY_WORDS say. Empty is fine: there is none."""
    return not text or (text.startswith("http://") and is_host(text.removeprefix("http://")))
