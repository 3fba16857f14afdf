"""From a file, the environment and flags to settings, with every mistake in one message.

Values are taken key by key, so that one wrong value neither hides the next nor the checks that follow. A key is a tuple
of names: `("root",)`, `("pull", "connections")`, `("registries", host, "plain_http")`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from modelmount.config import checks, words
from modelmount.config.schema import Registry, Settings
from modelmount.errors import InvalidRequest

DEFAULT_CONFIG_PATH = "/etc/modelmount/config.toml"

_Key = tuple[str, ...]
_FOREIGN = frozenset({"MODELMOUNT_CONFIG", "MODELMOUNT_FAILPOINTS", "MODELMOUNT_TOOLS"})
_SERVICE_LINK = re.compile(r"MODELMOUNT_(\w+_)?(SERVICE_(HOST|PORT)|PORT)(_\w+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Effective:
    """Settings, and where they come from: `sources` has the dotted key of each one that somebody set, with the file,
    the environment variable or `command line`. `file` is the file that was read, None without one.
    """

    settings: Settings
    sources: Mapping[str, str]
    file: Path | None


def load(
    path: str | None = None, environ: Mapping[str, str] = os.environ, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """The settings that `read` finds."""
    return read(path, environ, overrides).settings


def read(
    path: str | None = None, environ: Mapping[str, str] = os.environ, overrides: Mapping[str, Any] | None = None
) -> Effective:
    """Read the file (a missing *default* file is fine, a missing named one isn't), the environment and the flags; check
    everything.

    `MODELMOUNT_PULL_CONNECTIONS=8` sets `[pull] connections`, lists and tables are JSON there; `MODELMOUNT_CONFIG`
    names the file. `overrides` has dotted keys; None means that the flag wasn't given. Raises InvalidRequest with one
    line a mistake.
    """
    named = path or environ.get("MODELMOUNT_CONFIG")
    file = Path(named or DEFAULT_CONFIG_PATH)
    present = bool(named) or file.exists()
    reading = _Reading()
    if present:
        reading.table(_decoded(file), str(file))
    reading.environment(environ)
    for dotted, value in (overrides or {}).items():
        if value is not None:
            reading.take(tuple(dotted.split(".")), value, "command line")
    settings = reading.settings()
    problems = reading.problems + checks.problems(settings)
    if problems:
        raise InvalidRequest("the configuration has mistakes:\n" + "\n".join(f"  - {p}" for p in problems))
    return Effective(settings, reading.sources, file if present else None)


def _fields(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(struct)}


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    name: kind
    for name, kind in _fields(Settings).items()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
}
_KNOWN: dict[_Key, Any] = {(name,): kind for name, kind in _fields(Settings).items() if name not in _SECTIONS} | {
    (section, name): kind for section, struct in _SECTIONS.items() for name, kind in _fields(struct).items()
}
_OF_REGISTRY = _fields(Registry)


class _Reading:
    """What one reading has found so far: good values, where they came from, and the mistakes."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.problems: list[str] = []
        self._values: dict[_Key, Any] = {}
        self._hosts: dict[str, dict[str, Any]] = {}

    def table(self, table: Mapping[str, Any], source: str) -> None:
        for name, value in table.items():
            if name not in _SECTIONS:
                self.take((name,), value, source)
            elif isinstance(value, dict):
                for inner, part in value.items():
                    self.take((name, inner), part, source)
            else:
                self.problems.append(f"{source}: {name} must be a table: [{name}]")

    def environment(self, environ: Mapping[str, str]) -> None:
        variables = {"_".join(("MODELMOUNT", *key)).upper(): key for key in _KNOWN}
        for name, text in environ.items():
            if name in variables:
                self._variable(name, variables[name], text)
            elif name.startswith("MODELMOUNT_") and name not in _FOREIGN:
                link = "; Kubernetes makes it for a Service called modelmount: set enableServiceLinks: false in the pod"
                hint = link if _SERVICE_LINK.fullmatch(name) else _meant(name, variables)
                self.problems.append(f"environment: unknown variable {name}{hint}")
        if environ.get("CSI_ENDPOINT"):
            self.take(("endpoint",), environ["CSI_ENDPOINT"], "CSI_ENDPOINT")

    def take(self, key: _Key, value: Any, source: str) -> None:
        """A value of any key, its type exactly that of the schema."""
        dotted = ".".join(key)
        if key == ("registries",):
            self._registries(value, source)
        elif key in _KNOWN:
            self._keep(self._values, key, dotted, _KNOWN[key], value, source)
        else:
            self.problems.append(f"{source}: unknown key {dotted}{_meant(dotted, ('.'.join(k) for k in _KNOWN))}")

    def settings(self) -> Settings:
        """The good values, with defaults for the rest."""
        top = {key[0]: value for key, value in self._values.items() if len(key) == 1}
        sections = {
            section: struct(**{key[1]: value for key, value in self._values.items() if key[0] == section})
            for section, struct in _SECTIONS.items()
        }
        registries = {host: Registry(**values) for host, values in self._hosts.items()}
        return Settings(**top, **sections, registries=registries)  # type: ignore[arg-type]

    def _variable(self, name: str, key: _Key, text: str) -> None:
        kind = _KNOWN[key]
        if words.is_scalar(kind):
            self._keep(self._values, key, ".".join(key), kind, text, name, strict=False)
            return
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as e:
            self.problems.append(f"environment: {name} must be JSON with {words.expected(kind)}: {e}")
            return
        self.take(key, value, name)

    def _registries(self, value: Any, source: str) -> None:
        if not isinstance(value, dict) or not all(isinstance(settings, dict) for settings in value.values()):
            self.problems.append(f'{source}: registries must have one table a host: [registries."host:port"]')
            return
        for host, settings in value.items():
            kept = self._hosts.setdefault(host, {})
            self.sources[f'registries."{host}"'] = source
            for name, part in settings.items():
                dotted = f'registries."{host}".{name}'
                if name in _OF_REGISTRY:
                    self._keep(kept, name, dotted, _OF_REGISTRY[name], part, source)
                else:
                    self.problems.append(f"{source}: unknown key {dotted}{_meant(name, _OF_REGISTRY)}")

    def _keep(
        self, into: dict[Any, Any], key: Any, dotted: str, kind: Any, value: Any, source: str, *, strict: bool = True
    ) -> None:
        try:
            into[key] = msgspec.convert(value, kind, strict=strict)
        except msgspec.ValidationError:
            self.problems.append(f"{source}: {dotted} must be {words.expected(kind)}, not {words.shown(value)}")
        else:
            self.sources[dotted] = source


def _decoded(file: Path) -> dict[str, Any]:
    try:
        return msgspec.toml.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as e:
        raise InvalidRequest(f"cannot read the configuration {file}: {e.strerror}; name another with --config") from e
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise InvalidRequest(f"{file} is not valid TOML: {e}") from e


def _meant(name: str, known: Iterable[str]) -> str:
    """What may have been meant by a name nobody knows; the right key in the wrong table counts as close."""
    names = sorted(known)
    last = name.rpartition(".")[2]
    near = [n for n in names if n.rpartition(".")[2] == last] or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(names)}"
