"""The http and https URLs that are ever asked, taken apart strictly, so that the host that is judged is the host that
is asked.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Final

MAX_CHARACTERS: Final = 16 << 10
"""Longest URL that is read; presigned ones of the field have up to 4 KiB."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_PARTS = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.ASCII,
)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_AUTHORITY = re.compile(
    rf"(?:(?P<name>{_LABEL}(?:\.{_LABEL})*)\.?|\[(?P<address>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?", re.ASCII
)
_MAX_HOST_CHARACTERS = 253
_OF_TARGETS = "!$%&'()*+,/:;=?@"
"""What stays as it is written, besides letters, digits and `_.-~` (RFC 3986); all else is encoded."""


@dataclass(frozen=True, slots=True)
class Url:
    """Scheme (`http` or `https`), host in lower case (an IPv6 address without brackets), port, and what is asked for
    there: path and query. Fragments are dropped, user names refused.

    Its text and its repr leave the query out: that is where signatures of presigned URLs are.
    """

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Url:
        """Read an absolute URL. Raises ValueError with a reason that doesn't repeat the text."""
        _check_characters(text)
        parts = _PARTS.fullmatch(text)
        scheme = parts["scheme"].lower() if parts else ""
        if parts is None or scheme not in DEFAULT_PORTS:
            raise ValueError("it is neither http nor https")
        if "@" in parts["authority"]:
            raise ValueError("it has a user name in it")
        authority = _AUTHORITY.fullmatch(parts["authority"])
        if authority is None or len(parts["authority"]) > _MAX_HOST_CHARACTERS + len(":65535"):
            raise ValueError("it has no usable host")
        port = int(authority["port"] or DEFAULT_PORTS[scheme])
        if not 1 <= port <= 65535:
            raise ValueError("it has no usable port")
        target = urllib.parse.quote((parts["path"] or "/") + (parts["query"] or ""), safe=_OF_TARGETS)
        return cls(scheme, _host(authority["name"], authority["address"]), port, target)

    def join(self, location: str) -> Url:
        """Where a redirect's `Location` leads from here. Raises ValueError like `parse`."""
        _check_characters(location)
        return Url.parse(urllib.parse.urljoin(f"{self.scheme}://{self.authority}{self.target}", location))

    @property
    def authority(self) -> str:
        """`host`, or `host:port` where the port isn't the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_address(self) -> bool:
        """Whether the host is an address, also in the spellings that only resolvers take for one (`127.1`, `0x7f.1`):
        no registered name ends in a number.
        """
        return (
            ":" in self.host or re.fullmatch(r"0x[0-9a-f]*|[0-9]+", self.host.rpartition(".")[2], re.ASCII) is not None
        )

    def same_origin(self, other: Url) -> bool:
        """Same scheme, host and port: the only place that may see the same Authorization."""
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)

    def is_named(self, name: str) -> bool:
        """Whether an admin's `host` or `host:port` means this origin; `host` alone means the scheme's own port."""
        return _named(self.scheme, name) == (self.host, self.port)

    def __str__(self) -> str:
        """For messages: without the query."""
        return f"{self.scheme}://{self.authority}{self.target.partition('?')[0]}"


@functools.lru_cache(maxsize=1024)  # every request is compared with every name that the admin lists
def _named(scheme: str, name: str) -> tuple[str, int] | None:
    try:
        url = Url.parse(f"{scheme}://{name}")
    except ValueError:
        return None
    return url.host, url.port


def _check_characters(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise ValueError("it is too long")
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("it has characters in it that no URL has")


def _host(name: str | None, address: str | None) -> str:
    if address is None:
        if name is None or len(name) > _MAX_HOST_CHARACTERS:
            raise ValueError("it has no usable host")
        return name.lower()
    try:
        return str(ipaddress.IPv6Address(address))
    except ipaddress.AddressValueError:
        raise ValueError("it has no usable host") from None
