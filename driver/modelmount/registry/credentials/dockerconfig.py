"""Docker's configuration file, as Secrets of type `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg` and
the file on a node have it. Which entry is for a repository follows the kubelet's rules, so that a Secret that works for
images works for models.

The kubelet's rules (pkg/credentialprovider): an entry is a host, perhaps with a port and a path; each label of its host
may be a glob, there must be as many labels, ports must be equal, the longest path wins. Different from it, a path ends
at a slash: `host/team` is not for `host/team-b`.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

from modelmount.errors import InvalidRequest
from modelmount.oci import jsontext
from modelmount.oci.reference import Repository
from modelmount.registry.credentials.base import Credential

MAX_CHARACTERS = 1 << 20
"""More than a Secret can hold."""
MAX_ENTRIES = 1024
MAX_HOST_CHARACTERS = 320
"""More than a name of DNS and a port have, with room for globs. Entries are anybody's, and trying a glob takes time."""
_HUB_SERVER = "https://index.docker.io/v1/"
"""What helpers know Docker Hub by."""
_WILD = frozenset("*?[")
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


def find(text: str, repository: Repository, what: str) -> Credential | None:
    """The credential for `repository` in a `config.json` (`auths` inside) or the older form (entries on top); None when
    no entry is for it.

    Entries without a credential are passed over; those for others are not looked into. `what` names the text's origin.
    Raises InvalidRequest, without anything of the text, when it can't be used, or has very many entries.
    """
    return among(_entries(_document(text, what), what), repository, what)


def among(entries: Mapping[str, object], repository: Repository, what: str) -> Credential | None:
    """The same of entries by their names, as they stand in `auths`."""
    places = [(_Place.read(name), entry) for name, entry in entries.items() if isinstance(entry, dict)]
    matching = [(place, entry) for place, entry in places if place.matches(repository)]
    matching.sort(key=lambda pair: pair[0].rank, reverse=True)
    for place, entry in matching:
        credential = _credential(entry, f"{what}, entry {place.name!a}")
        if credential is not None:
            return credential
    return None


def names(pattern: str, repository: Repository) -> bool:
    """Whether an entry of this name is for `repository`."""
    return _Place.read(pattern).matches(repository)


def helper(text: str, repository: Repository, what: str) -> tuple[str, str] | None:
    """Which helper program has the credential for `repository`, and the server that it is asked about; None where none
    is named. The registry's own (`credHelpers`) comes before that of all (`credsStore`). Raises like `find`.
    """
    document = _document(text, what)
    server = _HUB_SERVER if repository.registry == "docker.io" else repository.registry
    own = document.get("credHelpers", {})
    if isinstance(own, dict):
        hosts = _HUB_NAMES | {_HUB_SERVER} if repository.registry == "docker.io" else {repository.registry}
        for host, name in own.items():
            if host in hosts and isinstance(name, str) and name:
                return name, server
    name = document.get("credsStore")
    return (name, server) if isinstance(name, str) and name else None


@dataclass(frozen=True, slots=True)
class _Place:
    """What the key of an entry says."""

    name: str
    host: str
    path: str

    @classmethod
    def read(cls, name: str) -> _Place:
        rest = name.strip()
        for scheme in ("https://", "http://"):
            rest = rest.removeprefix(scheme)
        host, _, path = rest.partition("/")
        parts = path.strip("/").split("/")
        if parts[0] in {"v1", "v2"}:  # what docker login writes behind the host
            parts = parts[1:]
        return cls(name, host.lower() if len(host) <= MAX_HOST_CHARACTERS else "", "/".join(parts))

    @property
    def rank(self) -> tuple[int, bool, str]:
        """Longer paths first, then hosts without globs."""
        return len(self.path), _WILD.isdisjoint(self.host), self.host

    def matches(self, repository: Repository) -> bool:
        if self.path and not f"{repository.repository}/".startswith(f"{self.path}/"):
            return False
        if repository.registry == "docker.io":
            return self.host in _HUB_NAMES
        if self.host == repository.registry:
            return True
        host, port = _split(self.host)
        wanted_host, wanted_port = _split(repository.registry)
        labels, wanted = host.split("."), wanted_host.split(".")
        return (
            port == wanted_port
            and len(labels) == len(wanted)
            and all(_globs(glob, name) for name, glob in zip(wanted, labels, strict=True))
        )


def _globs(glob: str, name: str) -> bool:
    """As fnmatch does, which would keep each glob that anybody ever wrote into a Secret."""
    return glob == name or (not _WILD.isdisjoint(glob) and re.match(fnmatch.translate(glob), name) is not None)


def _split(host: str) -> tuple[str, str]:
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and port.isdigit() else (host, "")


def _document(text: str, what: str) -> Mapping[str, object]:
    try:
        document = jsontext.loads(text) if len(text) <= MAX_CHARACTERS else None
    except ValueError:
        # Not chained: the parser's error carries the whole text.
        document = None
    if not isinstance(document, dict):
        raise InvalidRequest(f"{what} isn't the JSON of a docker configuration; write it as `docker login` does")
    return document


def _entries(document: Mapping[str, object], what: str) -> Mapping[str, object]:
    entries = document.get("auths", {} if "credHelpers" in document or "credsStore" in document else document)
    if entries is None:  # as the kubelet reads null
        return {}
    if not isinstance(entries, dict):
        raise InvalidRequest(f'{what}: "auths" isn\'t a table of registries; write it as `docker login` does')
    if len(entries) > MAX_ENTRIES:
        raise InvalidRequest(f"{what} has more than {MAX_ENTRIES} entries; keep those that are needed")
    return entries


def _credential(entry: Mapping[str, object], what: str) -> Credential | None:
    keys = ("username", "password", "auth", "identitytoken", "registrytoken")
    fields = {key: _text(entry, key, what) for key in keys}
    username, password = fields["username"], fields["password"]
    if fields["auth"]:
        username, password = _decoded(fields["auth"], what)
    if fields["registrytoken"]:
        return Credential(registry_token=fields["registrytoken"])
    if fields["identitytoken"]:
        return Credential(username=username, identity_token=fields["identitytoken"])
    if not username and not password:
        return None
    return Credential(username=username, password=password)


def _text(entry: Mapping[str, object], key: str, what: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or not _usable(value, as_token=key.endswith("token")):
        raise InvalidRequest(f"{what}: {key} can't be used; write it as `docker login` does")
    return value


def _usable(value: str, *, as_token: bool) -> bool:
    """Whether it can be sent: a token as it is, anything else as UTF-8, where JSON may hold halves of characters."""
    if as_token:
        return value.isascii() and value.isprintable()
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _decoded(auth: str, what: str) -> tuple[str, str]:
    auth = "".join(auth.split())
    try:
        # Docker pads with zero bytes, and takes Base64 with and without its own padding, and in lines.
        text = base64.b64decode(auth + "=" * (-len(auth) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    username, colon, password = text.partition(":")
    if not colon:
        raise InvalidRequest(f"{what}: auth isn't the Base64 of name:password; write it as `docker login` does")
    return username, password.strip("\0")
