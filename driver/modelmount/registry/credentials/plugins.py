"""The kubelet's credential provider plugins, found and asked as the kubelet does it: a program gets an image's name on
standard input and answers with credentials, and says how long and for what they are good.

Protocol: kubelet.config.k8s.io/v1 CredentialProviderConfig, credentialprovider.kubelet.k8s.io/v1. The service account's
token is passed on where a provider's `tokenAttributes` want it; annotations of service accounts are not known here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from modelmount.errors import InvalidRequest, Unavailable
from modelmount.oci import jsontext
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import accounts, dockerconfig
from modelmount.registry.credentials.base import Credential
from modelmount.registry.credentials.kept import Answer, Entries, Kept
from modelmount.system import programs

MAX_BYTES: Final = 1 << 20
MAX_DURATION_CHARACTERS: Final = 64
"""More than Go writes. Looking for units takes the square of it, which nothing interrupts."""
_API: Final = "credentialprovider.kubelet.k8s.io/"
_VERSIONS: Final = ("v1", "v1beta1", "v1alpha1")
_CONFIG_VERSIONS: Final = tuple(f"kubelet.config.k8s.io/{version}" for version in _VERSIONS)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_KEYS: Final = {"Image", "Registry", "Global"}


@dataclass(frozen=True, slots=True)
class Provider:
    """One entry of the configuration. `audience` is that of the service account's token it wants, empty for none;
    without such a token it isn't asked where it is `required`.
    """

    name: str
    patterns: tuple[str, ...]
    seconds: float
    api_version: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    audience: str = ""
    required: bool = False

    def concerns(self, repository: Repository) -> bool:
        """Whether one of its patterns is for this repository."""
        return any(dockerconfig.names(pattern, repository) for pattern in self.patterns)


class Plugins:
    """The providers of one configuration, which is read each time, and their answers. Thread-safe."""

    def __init__(self, config: Path, directory: Path, seconds: float, kept: Kept) -> None:
        """`directory` has the programs, each may take `seconds`. Nothing is read yet."""
        self._config, self._directory, self._seconds, self._kept = config, directory, seconds, kept

    def find(self, repository: Repository, tokens: str = "") -> Credential | None:
        """The credential of the first provider that has one for `repository`; None without one. `tokens` are those of
        the pod's service account.

        Raises Unavailable for a configuration that can't be used, and for a provider that fails: what it would have
        answered isn't known, and something else must not stand in for it.
        """
        for provider in read(self._config):
            if not provider.concerns(repository):
                continue
            account = accounts.find(tokens, provider.audience)
            if provider.required and account is None:
                continue
            entries = self._entries(provider, repository, account.account_token if account is not None else "")
            what = f"the answer of credential provider {provider.name}"
            try:
                found = dockerconfig.among(entries, repository, what)
            except InvalidRequest as e:
                raise Unavailable(f"{e.message}; the admin has to put it right") from e
            if found is not None:
                return found
        return None

    def _entries(self, provider: Provider, repository: Repository, token: str) -> Entries:
        """What is kept for the image counts before what is kept for its registry, and that before what is for all."""
        whose = hashlib.sha256(token.encode()).hexdigest() if token else ""
        places = {"Image": str(repository), "Registry": repository.registry, "Global": ""}
        keys = {kind: ("plugin", provider.name, whose, kind, place) for kind, place in places.items()}

        def ask() -> Answer:
            kind, entries, seconds = self._ask(provider, repository, token)
            return Answer(keys[kind], entries, seconds)

        return self._kept.get(tuple(keys.values()), self._seconds, ask)

    def _ask(self, provider: Provider, repository: Repository, token: str) -> tuple[str, Entries, float]:
        program = self._directory / provider.name
        question: dict[str, Any] = {
            "kind": "CredentialProviderRequest",
            "apiVersion": provider.api_version,
            "image": str(repository),
        }
        if token:
            question["serviceAccountToken"] = token
        who = f"the credential provider {program}"
        try:
            output = programs.run(
                program,
                provider.arguments,
                json.dumps(question).encode(),
                seconds=self._seconds,
                most_bytes=MAX_BYTES,
                environment=provider.environment,
            )
        except programs.ProgramError as e:
            raise Unavailable(f"{who} {e}; the admin has to put it right") from e
        if output.status != 0:
            raise Unavailable(f"{who} failed with status {output.status} for {repository}; try it by hand on the node")
        return _answer(output.text, provider, f"{who} answered for {repository}")


def read(config: Path) -> list[Provider]:
    """The providers of a configuration, in its order. Raises Unavailable, with the first mistake."""
    what = f"the credential providers' configuration {config}"
    try:
        with config.open("rb") as file:
            document = yaml.safe_load(file.read(MAX_BYTES))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it isn't YAML"
        raise Unavailable(f"{what} can't be read ({reason}); the admin has to put it right") from None
    try:
        if document.get("apiVersion") not in _CONFIG_VERSIONS or document.get("kind") != "CredentialProviderConfig":
            raise ValueError(f"it isn't a CredentialProviderConfig of {_CONFIG_VERSIONS[0]}")
        return [_provider(entry) for entry in document["providers"]]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        reason = str(e) if isinstance(e, ValueError) else "a field is missing or has another type than it should"
        raise Unavailable(f"{what} can't be used: {reason}; the admin has to put it right") from None


def seconds_of(text: object) -> float:
    """A duration as Go writes it, such as `1h30m`. Raises ValueError, TypeError for what is no text."""
    if not isinstance(text, str):
        raise TypeError
    if text == "0":
        return 0.0
    parts = list(_DURATION.finditer(text)) if len(text) <= MAX_DURATION_CHARACTERS else []
    if not parts or "".join(part[0] for part in parts) != text:
        raise ValueError(f"{text[:32]!a} is no duration such as 12h or 5m0s")
    return sum(float(part[1]) * _SECONDS[part[2]] for part in parts)


def _provider(entry: Mapping[str, Any]) -> Provider:
    name, version = entry["name"], entry["apiVersion"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!a} can't be a program's name")
    if not isinstance(version, str) or version not in {_API + known for known in _VERSIONS}:
        raise ValueError(f"provider {name}: apiVersion must be {_API}v1")
    patterns = _texts(entry.get("matchImages"))
    if not patterns:
        raise ValueError(f"provider {name} matches no images")
    attributes = entry.get("tokenAttributes") or {}
    return Provider(
        name,
        patterns,
        seconds_of(entry["defaultCacheDuration"]),
        version,
        _texts(entry.get("args")),
        {str(each["name"]): str(each["value"]) for each in entry.get("env") or ()},
        str(attributes.get("serviceAccountTokenAudience") or ""),
        attributes.get("requireServiceAccount") is True,
    )


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError
    return tuple(value)


def _answer(text: bytes, provider: Provider, who: str) -> tuple[str, Entries, float]:
    """For what it is good (the kind of key), the entries, and for how long."""
    try:
        document = jsontext.loads(text)
        if document["kind"] != "CredentialProviderResponse" or document["apiVersion"] != provider.api_version:
            raise ValueError
        kind, entries = document["cacheKeyType"], document.get("auth") or {}
        duration = document.get("cacheDuration")
        seconds = provider.seconds if duration is None else seconds_of(duration)
        if kind not in _KEYS or not isinstance(entries, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        # Not chained: the parser's error carries the whole text.
        raise Unavailable(f"{who} nothing that is a CredentialProviderResponse; try it by hand on the node") from None
    return kind, entries, seconds
