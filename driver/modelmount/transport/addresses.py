"""Which addresses may be connected to: everything that is a place in a network, private ones and this node's own place
included, but not the node's loopback, its link, or a cloud's metadata service.

The list is our own: the standard library's properties differ between releases and take several spellings of the same
place for global ones (IPv4 addresses inside of IPv6 ones, NAT64, 6to4, site-local). Sources: the IANA special-purpose
registries, RFC 6052, RFC 8215, RFC 3056, and the clouds' documentation for their metadata services.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Mapping
from enum import Enum

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Reach(Enum):
    """How far a connection may reach. NETWORK: no refused address. NETWORK_AND_LOOPBACK: also this node's loopback.
    ANYWHERE: an admin named the host.
    """

    NETWORK = "network"
    NETWORK_AND_LOOPBACK = "network and loopback"
    ANYWHERE = "anywhere"


def refusal(text: str, reach: Reach) -> str | None:
    """What kind of address this is when `reach` doesn't cover it, such as `link-local`; None when it does.

    `text` is an address as the socket has it, with or without a zone. What isn't an address is refused.
    """
    if reach is Reach.ANYWHERE:
        return None
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return "malformed"
    for meant in _meanings(address):
        kind = _kind(meant)
        if kind is not None and not (kind == _LOOPBACK and reach is Reach.NETWORK_AND_LOOPBACK):
            return kind
    return None


def spelled(host: str) -> str | None:
    """The address that resolvers make of `host` without asking anybody, however it is written: `127.1`, `0x7f.1` and
    `2130706433` are one (inet_aton(3)). None for a name.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


_LOOPBACK = "loopback"
_METADATA = "metadata-service"
_REFUSED: Mapping[str, tuple[str, ...]] = {
    _METADATA: (
        "169.254.169.254/32",
        "169.254.170.2/32",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "192.0.0.192/32",
        "fd00:ec2::254/128",
        "fd00:ec2::23/128",
        "fd20:ce::254/128",
        "fd00:42::42/128",
    ),
    _LOOPBACK: ("127.0.0.0/8", "::1/128"),
    "unspecified": ("0.0.0.0/8", "::/128"),
    "link-local": ("169.254.0.0/16", "fe80::/10"),
    "site-local": ("fec0::/10",),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
    "reserved": ("192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4", "100::/64", "2001::/23"),
}
_NETWORKS: tuple[tuple[str, _Network], ...] = tuple(
    (kind, ipaddress.ip_network(text)) for kind, texts in _REFUSED.items() for text in texts
)

_IPV4_IN_THE_LAST_BITS = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "::ffff:0:0/96",  # IPv4-mapped
        "::ffff:0:0:0/96",  # IPv4-translated (SIIT)
        "::/96",  # IPv4-compatible, deprecated
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64 of a site, in its usual form of /96
    )
)
_6TO4 = ipaddress.IPv6Network("2002::/16")


def _kind(address: Address) -> str | None:
    return next((kind for kind, network in _NETWORKS if address in network), None)


def _meanings(address: Address) -> Iterator[Address]:
    """The address and the IPv4 address that routers, or this kernel, would make of it."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        bits = int(address)
        if bits > 1 and any(address in network for network in _IPV4_IN_THE_LAST_BITS):
            yield ipaddress.IPv4Address(bits & 0xFFFF_FFFF)
        if address in _6TO4:
            yield ipaddress.IPv4Address((bits >> 80) & 0xFFFF_FFFF)
