"""containerd's `hosts.toml` directories (docs/hosts.md there), read as they are: which mirrors a registry has.

    <hosts_dir>/<host[:port]>/hosts.toml     also spelled <host>_<port>_
    <hosts_dir>/_default/hosts.toml          for every registry without a directory of its own
    <hosts_dir>/<host[:port]>/*.crt          without a hosts.toml: CAs, and certificates to show with their keys, as
                             /*.cert, *.key  Docker has them

Everything that is read is read strictly: a key that nobody knows, or one that containerd knows and we don't do, is a
mistake that names its file. Headers may hold secrets, and show in no message, repr or `config show`.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from modelmount.config import spelling, words
from modelmount.config.schema import Registry, Settings
from modelmount.errors import InvalidRequest

DEFAULT: Final = "_default"
FILE: Final = "hosts.toml"

_CAPABILITIES: Final = ("pull", "resolve", "push")
_KEYS: Final = ("capabilities", "ca", "skip_verify", "header", "override_path", "dial_timeout", "client", "proxy")
_HUB: Final = "docker.io"
_HUB_URL: Final = "https://registry-1.docker.io/v2"
"""Where containerd asks for it, whatever `server = "https://docker.io"` says in its examples."""
_PORT_SPELLED: Final = re.compile(r"(.+)_([0-9]{1,5})_", re.ASCII)
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s|m|h)", re.ASCII)
"""Go's, of which there may be several: `1m30s`."""
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """Somewhere a registry's content can be had. `url` is the API's root, `/v2` or what `override_path` says in its
    place, without a slash at the end. Equal to itself only.
    """

    url: str
    capabilities: frozenset[str] = frozenset(_CAPABILITIES)
    ca_files: tuple[str, ...] = ()
    clients: tuple[tuple[str, ...], ...] = ()
    """Certificates to show: for each its file, and that of its key where that lies apart."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    dial_seconds: float | None = None
    proxy: str = ""

    @property
    def authority(self) -> str:
        """`host` or `host:port`, as it would stand in references."""
        return urllib.parse.urlsplit(self.url).netloc.lower()

    @property
    def name(self) -> str:
        """Which mirror is meant, in messages and file names: its authority, and its path where that isn't `/v2`."""
        path = urllib.parse.urlsplit(self.url).path
        return self.authority if path == "/v2" else f"{self.authority}{path}".replace("/", "_")

    @property
    def has_login(self) -> bool:
        """Whether its headers say who we are. What `settings` makes of it may have a certificate to show besides."""
        return any(name.lower() in {"authorization", "cookie"} for name in self.headers)

    def settings(self, settings: Settings) -> Settings:
        """The settings that hold for this mirror: `settings` with it listed, as it wants to be asked, and with less
        patience.
        """
        known = settings.registry(self.authority)
        plain = self.url.startswith("http://")
        registry = msgspec.structs.replace(known, plain_http=plain, server=self.url, proxy=known.proxy or self.proxy)
        if plain or self.ca_files:
            cas = [] if plain else list(self.ca_files)
            registry = msgspec.structs.replace(registry, ca_file=None, ca_files=cas)
        if self.clients:
            registry = self._shown(registry)
        most = settings.pull.mirror_timeout_seconds
        pull = msgspec.structs.replace(
            settings.pull,
            connect_timeout_seconds=self.dial_seconds or min(most, settings.pull.connect_timeout_seconds),
            read_timeout_seconds=min(most, settings.pull.read_timeout_seconds),
            document_timeout_seconds=min(most, settings.pull.document_timeout_seconds),
        )
        return msgspec.structs.replace(
            settings, registries={**settings.registries, self.authority: registry}, pull=pull
        )

    def applied(self, known: Registry) -> Registry:
        """`known`, asked where this says, as far as it says nothing itself."""
        made = msgspec.structs.replace(
            known,
            server=known.server or self.url,
            plain_http=known.plain_http or self.url.startswith("http://"),
            ca_files=known.ca_files if known.cas else list(self.ca_files),
            proxy=known.proxy or self.proxy,
        )
        return made if known.clients else self._shown(made)

    def _shown(self, registry: Registry) -> Registry:
        return msgspec.structs.replace(
            registry,
            client_certificate=None,
            client_key=None,
            client_certificates=[list(files) for files in self.clients],
        )


@dataclass(frozen=True, slots=True)
class Namespace:
    """What one `hosts.toml` says: the mirrors in their order, and where the registry itself is asked, None for where
    its name says.
    """

    mirrors: tuple[Host, ...] = ()
    server: Host | None = None


class Hosts:
    """All namespaces of a directory. Immutable."""

    def __init__(self, namespaces: Mapping[str, Namespace]) -> None:
        """By registry as it stands in references, and DEFAULT."""
        self._namespaces = dict(namespaces)

    def mirrors(self, registry: str) -> tuple[Host, ...]:
        """The mirrors that serve `registry`'s blobs, in the order in which they are asked."""
        namespace = self._namespaces.get(registry) or self._namespaces.get(DEFAULT, Namespace())
        return tuple(each for each in namespace.mirrors if "pull" in each.capabilities)

    def has(self, registry: str) -> bool:
        """Whether `registry` has a directory of its own."""
        return registry in self._namespaces

    def all_mirrors(self) -> Iterator[Host]:
        """The mirrors of all registries."""
        for registry in self._namespaces:
            yield from self.mirrors(registry)

    def applied(self, settings: Settings) -> Settings:
        """`settings` with every registry asked where its `server` says. What `registries` says itself comes first."""
        registries = dict(settings.registries)
        for name, namespace in self._namespaces.items():
            server = namespace.server
            if server is not None:
                registries[name] = server.applied(registries.get(name, Registry()))
        return msgspec.structs.replace(settings, registries=registries)


def load(settings: Settings) -> Hosts:
    """The hosts of `hosts_dir`; none where it isn't set. Raises InvalidRequest with one line a mistake."""
    found, problems = read(settings.hosts_dir)
    if problems:
        raise InvalidRequest("hosts_dir has mistakes:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return found


def read(directory: str) -> tuple[Hosts, list[str]]:
    """The hosts of `directory` (empty: none) as far as they are right, and every mistake, one sentence each."""
    if not directory:
        return Hosts({}), []
    found: dict[str, Namespace] = {}
    problems: list[str] = []
    if not Path(directory).is_dir():
        return Hosts({}), [f"hosts_dir {directory} is not a directory"]
    try:
        files = sorted(_files(Path(directory)))
    except OSError as e:
        return Hosts({}), [f"hosts_dir {directory} cannot be read: {e.strerror}"]
    for file in files:
        name = file.name if file.is_dir() else file.parent.name
        spelled = _PORT_SPELLED.fullmatch(name)
        registry = f"{spelled[1]}:{spelled[2]}" if spelled else name
        reading = _File(file, registry)
        namespace = reading.certificates() if file.is_dir() else reading.namespace()
        problems += [f"{file}: {problem}" for problem in reading.problems]
        if spelled or registry not in found:  # `host_port_` comes before `host:port`, as in containerd
            found[registry] = namespace
    return Hosts(found), problems


def _files(directory: Path) -> Iterator[Path]:
    """The hosts.toml of each directory in it, or, where that isn't there, the directory if it has certificates."""
    for each in directory.iterdir():
        if (each / FILE).is_file():
            yield each / FILE
        elif each.is_dir() and any(path.suffix in {".crt", ".cert"} for path in each.iterdir()):
            yield each


class _File:
    """One hosts.toml, or a directory of certificates without one: its good values, and its mistakes."""

    def __init__(self, file: Path, registry: str) -> None:
        self._file, self._registry = file, registry
        self.problems: list[str] = []

    def namespace(self) -> Namespace:
        try:
            document = msgspec.toml.decode(self._file.read_bytes(), type=dict[str, Any])
        except OSError as e:
            self.problems.append(f"cannot be read: {e.strerror}")
            return Namespace()
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            self.problems.append(f"is not valid TOML: {e}")
            return Namespace()
        hosts = document.pop("host", {})
        if not isinstance(hosts, dict) or not all(isinstance(table, dict) for table in hosts.values()):
            self.problems.append('host must have one table a host: [host."https://mirror.example.com"]')
            hosts = {}
        mirrors = [self._host(url, table, f'host."{url}".') for url, table in hosts.items()]
        return Namespace(tuple(each for each in mirrors if each is not None), self._server(document))

    def certificates(self) -> Namespace:
        """Docker's pattern: `*.crt` are CAs, `*.cert` certificates to show, each with its `.key`."""
        if self._registry == DEFAULT:
            self.problems.append(f"certificates have no meaning in {DEFAULT}; give the registry a directory of its own")
            return Namespace()
        shown = []
        for certificate in sorted(self._file.glob("*.cert")):
            key = certificate.with_suffix(".key")
            if not key.is_file():
                self.problems.append(f"{certificate.name} has no {key.name} beside it")
            shown.append((str(certificate), str(key)))
        url = _HUB_URL if self._registry == _HUB else api_root(self._registry, override=False)
        if url is None:
            self.problems.append("has certificates, but its name is no registry's")
            return Namespace()
        cas = tuple(str(file) for file in sorted(self._file.glob("*.crt")))
        return Namespace(server=Host(url, ca_files=cas, clients=tuple(shown)))

    def _server(self, table: dict[str, Any]) -> Host | None:
        """The registry itself: asked elsewhere, or with more said about it. None where there is nothing to say."""
        if not table:
            return None
        if self._registry == DEFAULT:
            self.problems.append(f"{min(table)} has no meaning in {DEFAULT}; give the registry a directory of its own")
            return None
        made = self._host(table.pop("server", self._registry), table, "")
        if made is None:
            return None
        if made.headers:
            self.problems.append("header is for mirrors; credentials for the registry itself belong into Secrets")
        if made.authority == self._registry == _HUB:
            return dataclasses.replace(made, url=_HUB_URL) if table else None
        return made

    def _host(self, text: object, table: Mapping[str, Any], where: str) -> Host | None:
        """The table of `text`; None when that is no URL."""
        for key in sorted(table.keys() - set(_KEYS)):
            self.problems.append(f"{where}{key}: unknown key; known are {', '.join(_KEYS)}")
        override = self._value(table, where, "override_path", bool, default=False)
        url = api_root(text, override=override) if isinstance(text, str) else None
        if url is None:
            self.problems.append(
                f"{words.shown(text)} must be a URL such as https://mirror.example.com, without user name and query"
            )
            return None
        if self._value(table, where, "skip_verify", bool, default=False) and url.startswith("https://"):
            self.problems.append(f"{where}skip_verify: TLS verification cannot be switched off; name the CA with ca")
        return Host(
            url,
            frozenset(self._capabilities(table, where)),
            self._ca_files(table, where),
            tuple(self._clients(table, where)),
            dict(self._headers(table, where)),
            self._dial_seconds(table, where),
            self._proxy(table, where),
        )

    def _capabilities(self, table: Mapping[str, Any], where: str) -> list[str]:
        names: list[str] = self._value(table, where, "capabilities", list[str], default=[])
        for name in names:
            if name.lower() not in _CAPABILITIES:
                self.problems.append(
                    f"{where}capabilities: {words.shown(name)} is unknown; known are {', '.join(_CAPABILITIES)}"
                )
        return [name.lower() for name in names] or list(_CAPABILITIES)

    def _ca_files(self, table: Mapping[str, Any], where: str) -> tuple[str, ...]:
        files = self._value(table, where, "ca", str | list[str], default=[])
        return tuple(str(self._file.parent / file) for file in ([files] if isinstance(files, str) else files))

    def _proxy(self, table: Mapping[str, Any], where: str) -> str:
        text: str = self._value(table, where, "proxy", str, default="")
        found = text.removesuffix("/")
        if spelling.is_proxy(found):
            return found
        # Without the value: it may have a login in it.
        self.problems.append(f"{where}proxy must be {spelling.PROXY_WORDS}")
        return ""

    def _clients(self, table: Mapping[str, Any], where: str) -> Iterator[tuple[str, ...]]:
        """A file with both, or several files, or pairs of files, of which the second may be empty."""
        found = self._value(table, where, "client", str | list[str | list[str]], default=[])
        for each in [found] if isinstance(found, str) else found:
            files = [each] if isinstance(each, str) else each
            if len(files) not in {1, 2} or not files[0]:
                self.problems.append(
                    f'{where}client: name certificates as "client.pem", or as [["client.cert", "client.key"]]'
                )
            else:
                yield tuple(str(self._file.parent / file) for file in files if file)

    def _headers(self, table: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
        headers: dict[str, str | list[str]] = self._value(
            table, where, "header", dict[str, str | list[str]], default={}
        )
        for name, value in headers.items():
            text = value if isinstance(value, str) else ", ".join(value)
            if not _HEADER_NAME.fullmatch(name) or not text.isascii() or not text.isprintable():
                self.problems.append(f"{where}header: {words.shown(name)} is no header, or its value can't be sent")
            else:
                yield name, text

    def _dial_seconds(self, table: Mapping[str, Any], where: str) -> float | None:
        text = self._value(table, where, "dial_timeout", str, default="")
        seconds = sum(float(match[1]) * _SECONDS[match[2]] for match in _DURATION.finditer(text))
        if _DURATION.sub("", text) or not 0 < seconds <= 3600:
            if text:
                self.problems.append(f"{where}dial_timeout must be a time such as 200ms or 5s, not {words.shown(text)}")
            return None
        return seconds

    def _value(self, table: Mapping[str, Any], where: str, key: str, kind: Any, *, default: Any) -> Any:
        """Never with the value in a message: it may be a header's."""
        try:
            return msgspec.convert(table.get(key, default), kind)
        except msgspec.ValidationError as e:
            self.problems.append(f"{where}{key}: {str(e).partition(' - ')[0]}")
            return default


def api_root(text: str, *, override: bool) -> str | None:
    """The root of the API below `text`, by containerd's rules: https where no scheme is named, and `/v2` at the end
    unless it is there or the path counts as it is. None when it isn't a URL.
    """
    try:
        parts = urllib.parse.urlsplit(text if text.startswith(("http://", "https://")) else f"https://{text}")
        usable = bool(parts.hostname) and "@" not in parts.netloc and not parts.query and not parts.fragment
        _ = parts.port
    except ValueError:
        return None
    if not usable or not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        return None
    path = posixpath.normpath(parts.path) if parts.path.strip("/") else ""
    if not override and not path.endswith("/v2"):
        path += "/v2"
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"
