"""References to models: `host[:port]/path[:tag][@digest]`.

The grammar is that of github.com/distribution/reference, with one difference that suits a driver: the registry host
must be written, with a dot or a port in it, or be `localhost`. A reference that parses is ASCII, and its canonical text
parses to the same.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
from dataclasses import dataclass

from modelmount.errors import InvalidRequest
from modelmount.oci.digest import Digest

PREFIXES = ("oci://", "docker://", "oras://")
"""Schemes that mean "a registry" in the field's tools; taken off."""
MAX_PATH_CHARACTERS = 255
DEFAULT_TAG = "latest"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_NUMERIC_LABEL = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+", re.ASCII)
_OTHER_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://", re.ASCII)
_MAX_PORT = 65535
_SHOWN_CHARACTERS = 200
_REMEMBERED = 256


@dataclass(frozen=True, slots=True, order=True)
class Repository:
    """A registry (`host` or `host:port`, lower case) and a path in it. Together they are the unit of trust."""

    registry: str
    repository: str

    def __str__(self) -> str:
        """As it stands in references."""
        return f"{self.registry}/{self.repository}"

    @property
    def scope(self) -> str:
        """The name of this unit of trust on disk: 32 hex digits that follow from registry and path alone."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:32]

    @property
    def host(self) -> str:
        """The registry without its port and without the brackets of an IPv6 address."""
        return split_port(self.registry)[0].strip("[]")

    @property
    def is_address_like(self) -> bool:
        """Whether the host is an address, or a name that resolvers take for one or for this very machine.

        `127.1`, `2130706433` and `0x7f.1` are all 127.0.0.1 to getaddrinfo: any name whose last label is a number.
        """
        return _is_address_like(self.host)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a user wrote, decided: with a digest the tag is only for show."""

    repository: Repository
    tag: str | None
    digest: Digest | None

    def __str__(self) -> str:
        """The canonical text; parsing it gives an equal reference."""
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.repository}{tag}{digest}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference; without tag and digest the tag is `latest`. Raises InvalidRequest saying what is wrong."""
        name = _without_prefix(text)
        if "@" in name.partition("/")[0]:
            raise _refused(text, "contains a user name; credentials belong into a Secret")
        name, at, digest_text = name.partition("@")
        digest = Digest.parse(digest_text) if at else None
        registry, slash, rest = name.partition("/")
        if not slash or not _names_a_host(registry):
            raise _refused(text, "names no registry host; write for example harbor.example.com/llm/llama3-70b:v1")
        path, colon, tag = rest.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise _refused(text, "has a bad tag; a tag has 1 to 128 letters, digits, '_', '.' and '-'")
        if not _PATH.fullmatch(path):
            raise _refused(
                text, "has a bad repository path; it takes lower-case letters, digits and '.', '_', '-', '/'"
            )
        repository = _canonical(_checked_registry(text, registry), path)
        if len(repository.repository) > MAX_PATH_CHARACTERS:
            raise _refused(text, f"has a repository path of more than {MAX_PATH_CHARACTERS} characters")
        return cls(repository, tag if colon else None if digest else DEFAULT_TAG, digest)


@functools.lru_cache(_REMEMBERED)
def _is_address_like(host: str) -> bool:
    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def split_port(registry: str) -> tuple[str, int | None]:
    """Host (an IPv6 address in its brackets) and port of a `host[:port]`."""
    host, colon, port = registry.rpartition(":")
    if colon and not registry.endswith("]"):
        return host, int(port)
    return registry, None


def _without_prefix(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise _refused(text, "contains characters other than printable ASCII")
    for prefix in PREFIXES:
        if text.startswith(prefix):
            return text[len(prefix) :]
    scheme = _OTHER_SCHEME.match(text)
    if scheme is not None:
        raise _refused(text, f"begins with {scheme[0]}; write the registry host first, or oci:// before it")
    return text


def _names_a_host(part: str) -> bool:
    """The rule that tells `host/path` from `path/path`. Upper case alone makes no host here: in lower case it would be
    a path.
    """
    return part.lower() == "localhost" or any(c in ".:[" for c in part)


def _checked_registry(text: str, registry: str) -> str:
    host, colon, port = registry.rpartition(":")
    if not colon or registry.endswith("]"):
        host, port = registry, ""
    elif not (port.isdigit() and port[0] != "0" and len(port) <= len(str(_MAX_PORT)) and int(port) <= _MAX_PORT):
        raise _refused(text, "has a bad port")
    if not _HOST.fullmatch(host):
        raise _refused(text, "has a bad registry host")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise _refused(text, "has a bad IPv6 address") from None
    return registry.lower()


def _canonical(registry: str, path: str) -> Repository:
    if registry == "index.docker.io":
        registry = "docker.io"
    if registry == "docker.io" and "/" not in path:
        path = f"library/{path}"
    return Repository(registry, path)


def _refused(text: str, problem: str) -> InvalidRequest:
    shown = _without_credentials(text)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[:_SHOWN_CHARACTERS] + "…"
    return InvalidRequest(f"reference {shown!a} {problem}")


def _without_credentials(text: str) -> str:
    """`text` with what may be a password hidden: whatever stands before an @, unless only a digest can follow it."""
    scheme = _OTHER_SCHEME.match(text)
    start = scheme.end() if scheme else 0
    name, at, digest = text[start:].rpartition("@")
    if "/" not in name or "/" in digest or ":" not in digest:
        name, at, digest = text[start:], "", ""
    hidden, mark, shown = name.rpartition("@")
    return f"{text[:start]}{'***' if hidden else ''}{mark}{shown}{at}{digest}"
