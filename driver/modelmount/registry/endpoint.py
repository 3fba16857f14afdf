"""Where a registry is asked: its URL, and the one registry whose name in references isn't its host."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Final

from modelmount.config import Settings
from modelmount.errors import InvalidRequest
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.transport.url import Url

_API_HOSTS: Final[Mapping[str, str]] = {"docker.io": "registry-1.docker.io"}
_NEXT: Final = re.compile(r'<([^<>]*)>\s*;[^,<]*\brel\s*=\s*"?next\b', re.ASCII | re.IGNORECASE)
_TOKEN_HOSTS: Final[Mapping[str, tuple[str, ...]]] = {"docker.io": ("auth.docker.io",)}


def manifest(settings: Settings, repository: Repository, name: str | Digest) -> Url:
    """The URL of a manifest by tag or digest. Raises InvalidRequest for a host that can't be one."""
    return _url(settings, repository, f"manifests/{name}")


def blob(settings: Settings, repository: Repository, digest: Digest) -> Url:
    """The URL of a blob. Raises InvalidRequest like `manifest`."""
    return _url(settings, repository, f"blobs/{digest}")


def referrers(settings: Settings, repository: Repository, digest: Digest) -> Url:
    """The URL of the list of what refers to a manifest. Raises InvalidRequest like `manifest`."""
    return _url(settings, repository, f"referrers/{digest}")


def following(page: Url, links: Iterable[str]) -> Url | None:
    """Where a list goes on after `page`, by its `Link` headers (RFC 8288, distribution-spec 1.1); None where it ends or
    names no URL. It may be anywhere.
    """
    for found in _NEXT.finditer(", ".join(links)):
        try:
            return page.join(found[1])
        except ValueError:
            continue
    return None


def uploads(settings: Settings, repository: Repository) -> Url:
    """The URL where uploads of blobs begin. Raises InvalidRequest like `manifest`."""
    return _url(settings, repository, "blobs/uploads/")


def home(settings: Settings, registry: str) -> Url:
    """The root of the registry's API: https and its own host unless the admin says otherwise. Raises InvalidRequest
    like `manifest`.
    """
    listed = settings.registry(registry)
    scheme = "http" if listed.plain_http else "https"
    try:
        return _parsed(f"{listed.server or f'{scheme}://{_API_HOSTS.get(registry, registry)}/v2'}/")
    except ValueError as e:
        raise InvalidRequest(f"{registry} can't be a registry's host: {e}") from e


def token_hosts(settings: Settings, registry: str) -> tuple[str, ...]:
    """Hosts besides the registry's own that may be its token server."""
    return (*_TOKEN_HOSTS.get(registry, ()), *settings.registry(registry).trusted_realms)


def _url(settings: Settings, repository: Repository, rest: str) -> Url:
    root = home(settings, repository.registry)
    return Url(root.scheme, root.host, root.port, f"{root.target}{repository.repository}/{rest}")


_parsed = functools.lru_cache(1024)(Url.parse)  # every request begins with it
