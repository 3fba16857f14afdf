"""Settings: one schema, read from a TOML file, then `MODELMOUNT_*` environment variables, then command-line flags;
later ones win.

Every knob is documented on its field here and nowhere else. `load` reports *all* mistakes at once, so that an admin
fixes a file in one go.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from modelmount.errors import InvalidRequest

DEFAULT_CONFIG_PATH = "/etc/modelmount/config.toml"


class Registry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an admin says about one registry host; the table key is `host` or `host:port` as it stands in references."""

    plain_http: bool = False
    """Talk http instead of https. Only here, never in a volume's attributes."""
    ca_file: str | None = None
    """PEM file with the CA certificates to trust for this host, instead of the system's."""
    trusted_realms: list[str] = []
    """Hosts (`host` or `host:port`) besides the registry's own that may act as its token server."""


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may read what is cached already."""

    verification: Literal["always", "never"] = "always"
    """`always`: each first publish proves its own access with one manifest request. `never`: whatever is cached here is
    readable by every pod.
    """
    docker_config: str | None = None
    """Path of a docker `config.json` whose credentials are used when the pod brings none."""


class Pull(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How blobs are fetched."""

    connections: int = 4
    """Blobs fetched at the same time on this node, 1 to 64."""
    connect_timeout_seconds: float = 10.0
    """How long one connection may take to be made."""
    read_timeout_seconds: float = 30.0
    """How long a connection may stay silent."""
    document_timeout_seconds: float = 30.0
    """Total time for one small document: manifest, token."""
    idle_seconds: float = 300.0
    """A job that no call has asked for stops after this time and keeps its bytes. The kubelet comes back after at most
    122 s.
    """


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Upper bounds on what an artifact may be."""

    model_bytes: int = 4 << 40
    """Declared size of one model, and the bytes its archives may unpack to."""
    archive_entries: int = 100_000
    """Entries in one archive."""
    free_bytes: int = 1 << 30
    """Free space on the store's file system that a pull must leave."""


class Publish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a call waits and what a mount looks like."""

    wait_fraction: float = 0.92
    """Share of a call's remaining time to wait in it before answering that the pull goes on."""
    wait_seconds: float = 105.0
    """Longest wait inside one call, also where the caller set no deadline."""
    waiters: int = 64
    """Publishes that may wait at the same time; the next one is told to come again."""
    mount_flags: tuple[Literal["nosuid", "nodev", "noexec"], ...] = ("nosuid", "nodev", "noexec")
    """Flags on top of `ro`. runc before 1.2 cannot start containers with user namespaces over any of them: then set
    `[]`.
    """


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an admin can set. Times are seconds, sizes bytes."""

    root: str = "/var/lib/modelmount"
    """The store. One file system, mode 0700; readable with ls and cat."""
    mode: Literal["all", "node", "controller"] = "all"
    """Which CSI services to serve beside Identity."""
    endpoint: str = "unix:///var/lib/kubelet/plugins/csi.modelmount.io/csi.sock"
    """The CSI socket. `CSI_ENDPOINT` overrides it, as the CSI specification demands."""
    driver_name: str = "csi.modelmount.io"
    """The name in CSIDriver, StorageClass and pods."""
    node_id: str = ""
    """The Kubernetes node name; empty means this host's name."""
    kubelet_root: str = "/var/lib/kubelet"
    """The kubelet's root directory."""
    target_roots: list[str] = []
    """Directories below which volumes may be published; empty means `<kubelet_root>/pods`."""
    registration_dir: str = ""
    """Where the kubelet looks for plugins; empty means `<kubelet_root>/plugins_registry`, `none` switches built-in
    registration off.
    """
    registration_endpoint: str = ""
    """The path of the CSI socket as the *kubelet* sees it, when that differs from ours."""
    metrics_address: str = ""
    """`host:port` for /metrics and /healthz; empty means off."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""
    allowed_registries: list[str] = []
    """Globs of registry hosts that volumes may name; empty means every host that is not an address, `localhost` or
    link-local.
    """
    registries: dict[str, Registry] = {}
    """Per-host settings. Naming a host here also allows it where it is an address or `localhost`."""
    auth: Auth = Auth()
    pull: Pull = Pull()
    limits: Limits = Limits()
    publish: Publish = Publish()

    def registry(self, host: str) -> Registry:
        """The settings of `host`, the defaults where it isn't listed."""
        return self.registries.get(host, _UNLISTED)

    def permits(self, host: str) -> bool:
        """Whether the admin's allow-list lets volumes name `host`."""
        return not self.allowed_registries or any(
            fnmatch.fnmatchcase(host, pattern) for pattern in self.allowed_registries
        )

    @property
    def socket_path(self) -> Path:
        """The CSI socket as a path."""
        return Path(self.endpoint.removeprefix("unix://"))

    @property
    def publish_roots(self) -> tuple[Path, ...]:
        """Directories below which targets must lie."""
        return tuple(Path(p) for p in self.target_roots) or (Path(self.kubelet_root) / "pods",)

    @property
    def plugins_registry(self) -> Path | None:
        """Where to put the registration socket; None when built-in registration is off."""
        if self.registration_dir == "none":
            return None
        return Path(self.registration_dir or f"{self.kubelet_root}/plugins_registry")


_UNLISTED = Registry()


def load(
    path: str | None = None, environ: Mapping[str, str] = os.environ, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Read the file (a missing *default* file is fine, a missing named one isn't), the environment and the flags; check
    everything.

    `MODELMOUNT_PULL_CONNECTIONS=8` sets `[pull] connections`; `MODELMOUNT_CONFIG` names the file. Raises InvalidRequest
    with one line a mistake.
    """
    named = path or environ.get("MODELMOUNT_CONFIG")
    file = Path(named or DEFAULT_CONFIG_PATH)
    data: dict[str, Any] = {}
    problems: list[str] = []
    if named or file.exists():
        try:
            data = msgspec.toml.decode(file.read_bytes(), type=dict[str, Any])
        except OSError as e:
            raise InvalidRequest(
                f"cannot read the configuration {file}: {e.strerror}; name another with --config"
            ) from e
        except msgspec.DecodeError as e:
            raise InvalidRequest(f"{file} is not valid TOML: {e}") from e
    _apply_environment(data, environ, problems)
    for key, value in (overrides or {}).items():
        if value is not None:
            _set(data, tuple(key.split(".")), value)
    settings = _convert(data, problems, str(file))
    if settings is not None:
        problems += _check(settings)
    if problems or settings is None:
        raise InvalidRequest("the configuration has mistakes:\n" + "\n".join(f"  - {p}" for p in problems))
    return settings


def _sections() -> dict[str, type[msgspec.Struct]]:
    return {
        f.name: f.type
        for f in msgspec.structs.fields(Settings)
        if isinstance(f.type, type) and issubclass(f.type, msgspec.Struct)
    }


def _apply_environment(data: dict[str, Any], environ: Mapping[str, str], problems: list[str]) -> None:
    known: dict[str, tuple[str, ...]] = {}
    sections = _sections()
    for field in msgspec.structs.fields(Settings):
        if field.name in sections:
            for inner in msgspec.structs.fields(sections[field.name]):
                known[f"MODELMOUNT_{field.name}_{inner.name}".upper()] = (field.name, inner.name)
        else:
            known[f"MODELMOUNT_{field.name}".upper()] = (field.name,)
    for key, text in environ.items():
        if key in {"MODELMOUNT_CONFIG", "MODELMOUNT_FAILPOINTS", "MODELMOUNT_TOOLS"} or not key.startswith(
            "MODELMOUNT_"
        ):
            continue
        if key not in known:
            problems.append(f"environment: unknown variable {key}")
            continue
        value: Any = text
        if text[:1] in "[{":
            try:
                value = msgspec.json.decode(text)
            except msgspec.DecodeError as e:
                problems.append(f"environment: {key} is not valid JSON: {e}")
                continue
        _set(data, known[key], value)
    if environ.get("CSI_ENDPOINT"):
        data["endpoint"] = environ["CSI_ENDPOINT"]


def _set(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
    data[path[-1]] = value


def _convert(data: dict[str, Any], problems: list[str], source: str) -> Settings | None:
    """Convert field by field, so that each mistake is found and not only the first."""
    values: dict[str, Any] = {}
    fields = {f.name: f for f in msgspec.structs.fields(Settings)}
    sections = _sections()
    for key, value in data.items():
        if key not in fields:
            problems.append(f"{source}: unknown key {key!r}; known: {', '.join(sorted(fields))}")
            continue
        parts = value.items() if key in sections and isinstance(value, dict) else [(None, value)]
        inner: dict[str, Any] = {}
        for name, part in parts:
            try:
                if name is None:
                    values[key] = msgspec.convert(part, fields[key].type, strict=False)
                else:
                    msgspec.convert({name: part}, sections[key], strict=False)
                    inner[name] = part
            except msgspec.ValidationError as e:
                problems.append(f"{source}: {key}{'.' + name if name else ''}: {e}")
        if key in sections and isinstance(value, dict):
            values[key] = msgspec.convert(inner, sections[key], strict=False)
    return Settings(**values) if not problems or values else Settings()


def _check(settings: Settings) -> list[str]:
    problems = []
    if not settings.endpoint.startswith("unix://") or not settings.socket_path.is_absolute():
        problems.append(f"endpoint {settings.endpoint!r} must be unix:// and an absolute path")
    elif len(str(settings.socket_path)) > 107:
        problems.append(f"endpoint {settings.endpoint!r} is longer than the 107 characters a unix socket may have")
    for name in ("root", "kubelet_root", *(() if settings.plugins_registry is None else ("registration_dir",))):
        value = getattr(settings, name)
        if value and not value.startswith("/"):
            problems.append(f"{name} {value!r} must be an absolute path")
    problems += [
        f"target_roots: {root!r} must be an absolute path" for root in settings.target_roots if not root.startswith("/")
    ]
    if not 1 <= settings.pull.connections <= 64:
        problems.append("pull.connections must be 1 to 64")
    if not 0.1 <= settings.publish.wait_fraction <= 0.99:
        problems.append("publish.wait_fraction must be 0.1 to 0.99")
    if not 1 <= settings.publish.waiters <= 1024:
        problems.append("publish.waiters must be 1 to 1024")
    problems += [
        f"pull.{name} must be positive"
        for name in ("connect_timeout_seconds", "read_timeout_seconds", "document_timeout_seconds", "idle_seconds")
        if getattr(settings.pull, name) <= 0
    ]
    return problems


def as_dict(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, for `config show` and the support bundle. There are no secrets in them."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    return plain
