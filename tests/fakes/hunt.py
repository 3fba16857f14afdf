"""The hunt for secrets: what tests hand out as one is remembered, and looked for in all that a driver left or said.

Fakes plant what they know to be secret, so a test needs nothing to take part. Names and values of fewer than eight
characters are left out: ordinary words.
"""

from __future__ import annotations

import base64
import json
import os
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path

SHORTEST = 8
LARGEST_FILE = 256 << 10
CONTENT = frozenset({"blobs", "unpacked", "trees", "ingest"})
"""Rooms of a store whose files are a registry's bytes; their names are looked at all the same."""
_SIGNATURES = frozenset({"x-amz-signature", "x-amz-security-token", "x-goog-signature", "signature", "sig"})
_FIELDS = ("password", "auth", "identitytoken", "registrytoken", "token")

_planted: dict[bytes, str] = {}


class SecretFound(AssertionError):
    """A secret is where none may be."""


def plant(kind: str, secret: str) -> str:
    """Remember it, in the forms in which it travels; answers it."""
    forms = {secret, urllib.parse.quote(secret, safe=""), json.dumps(secret)[1:-1]}
    for form in forms if len(secret) >= SHORTEST else ():
        _planted.setdefault(form.encode(), kind)
    return secret


def plant_login(username: str, password: str) -> None:
    """A password, also as Basic authentication has it."""
    plant("password", password)
    if len(password) >= SHORTEST:
        plant("password", base64.b64encode(f"{username}:{password}".encode()).decode())


def plant_volume(secrets: Mapping[str, str], attributes: Mapping[str, str]) -> None:
    """What the kubelet hands to a driver: a Secret's values, and the pod's service account's tokens."""
    for key, value in secrets.items():
        if key in {".dockerconfigjson", ".dockercfg"}:
            plant_document(value)
        elif key != "username":
            plant("token" if key == "token" else "password", value.strip())
    tokens = [value for name, value in attributes.items() if "serviceAccount.tokens" in name]
    for value in (*tokens, *(value for key, value in secrets.items() if "serviceAccount.tokens" in key)):
        plant_document(value)


def plant_document(text: str) -> None:
    """Every secret field of a JSON document, such as docker's; nothing where it is none."""
    try:
        values = [json.loads(text)]
    except (ValueError, RecursionError):
        return
    while values:
        value = values.pop()
        if isinstance(value, Mapping):
            for key, each in value.items():
                if key in _FIELDS and isinstance(each, str):
                    plant(key, each)
                else:
                    values.append(each)
            if isinstance(value.get("username"), str) and isinstance(value.get("password"), str):
                plant_login(value["username"], value["password"])
        elif isinstance(value, list):
            values.extend(value)


def plant_key(path: Path) -> None:
    """The lines of a private key in PEM."""
    for line in path.read_text().splitlines():
        if not line.startswith("-"):
            plant("key", line.strip())


def plant_address(url: str) -> None:
    """The signature of an address that whoever has it may use."""
    for name, value in urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query):
        if name.lower() in _SIGNATURES:
            plant("signature", value)


def kinds() -> set[str]:
    """What has been planted so far."""
    return set(_planted.values())


def demand_clean(data: bytes | str, where: str) -> None:
    """Raises SecretFound, which doesn't repeat it."""
    if isinstance(data, str):
        data = data.encode(errors="surrogateescape")
    for secret, kind in list(_planted.items()):
        if secret in data:
            at = data.index(secret)
            around = data[max(0, at - 100) : at].decode(errors="replace")
            raise SecretFound(f"a planted {kind} is in {where}, behind {around!r}")


def search_store(store: Path) -> None:
    """Names of everything, and what is in the files that are the driver's own."""
    for where, directories, names in os.walk(store):
        room = Path(where).relative_to(store).parts[:1]
        demand_clean("\n".join((*directories, *names)), f"names in {where}")
        if not CONTENT.intersection(room):
            search_files(Path(where, name) for name in names)


def search_files(paths: Iterable[Path]) -> None:
    """Small ones; those that go meanwhile are left out."""
    for path in paths:
        try:
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST_FILE:
                demand_clean(path.read_bytes(), str(path))
        except FileNotFoundError:
            continue


def search_process(pid: int) -> None:
    """The arguments and environment of a process and of those that it started; what ends meanwhile is left out."""
    waiting = [pid]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            for name in ("cmdline", "environ"):
                demand_clean((process / name).read_bytes(), str(process / name))
            waiting += [int(word) for path in process.glob("task/*/children") for word in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
