"""The keys and trusted roots that demands name. Their files are looked at each time: a key that is taken out counts no
more from then on.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from modelmount.errors import InvalidRequest
from modelmount.policy.signing import Demand
from modelmount.signatures.messages import Key, Vouched

MOST_BYTES: Final = 1 << 20
MOST_KEYS: Final = 64
_PEM: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+?)-----END PUBLIC KEY-----")


@dataclass(frozen=True, slots=True)
class Material:
    """What a rule's demands are checked with."""

    demands: tuple[Demand, ...]
    keys: tuple[Key, ...]
    identities: tuple[Vouched, ...]
    roots: tuple[bytes, ...] = field(repr=False)
    authorities: tuple[frozenset[str], ...]
    """Of each demand: whose signatures count for it."""
    bound: str
    """Changes with the demands, and with every byte of keys and roots."""


Signature = tuple[tuple[int, int, int] | None, ...]


def signature(demands: Sequence[Demand]) -> Signature:
    """What changes when one of the files does."""
    found: list[tuple[int, int, int] | None] = []
    for demand in demands:
        for path in (*demand.keys, demand.trusted_root):
            try:
                status = os.stat(path) if path else None
            except OSError:
                status = None
            found.append(status and (status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def read(demands: Sequence[Demand]) -> Material:
    """What the demands name. Raises InvalidRequest for files that can't be read or have no key in them."""
    keys: dict[str, Key] = {}
    identities: dict[str, Vouched] = {}
    roots: list[bytes] = []
    authorities: list[frozenset[str]] = []
    for demand in demands:
        own: set[str] = set()
        for path in demand.keys:
            for key in _keys(path):
                keys[key.authority] = key
                own.add(key.authority)
        if demand.trusted_root:
            root = _file(demand.trusted_root)
            if root not in roots:
                roots.append(root)
            for each in demand.identities:
                text = msgspec.json.encode([each.identity, each.issuer, hashlib.sha256(root).hexdigest()])
                authority = f"identity:{hashlib.sha256(text).hexdigest()}"
                identities[authority] = Vouched(authority, each.identity, each.issuer, roots.index(root))
                own.add(authority)
        authorities.append(frozenset(own))
    if len(keys) > MOST_KEYS or len(identities) > MOST_KEYS:
        raise InvalidRequest(f"one rule names more than {MOST_KEYS} keys or identities")
    parts = [msgspec.json.encode([list(each) for each in (sorted(keys), sorted(identities))])]
    parts += [hashlib.sha256(root).digest() for root in roots]
    parts += [type(each).__name__.encode() + msgspec.json.encode(each) for each in demands]
    bound = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    found = tuple(demands), tuple(keys.values()), tuple(identities.values())
    return Material(*found, tuple(roots), tuple(authorities), bound)


def _keys(path: str) -> list[Key]:
    found = []
    for encoded in _PEM.findall(_file(path)):
        try:
            der = base64.b64decode(encoded, validate=False)
        except binascii.Error as e:
            raise InvalidRequest(f"the key file {path} is damaged") from e
        fingerprint = hashlib.sha256(der).hexdigest()
        found.append(Key(f"key:{fingerprint}", der, f"key {Path(path).name} (sha256:{fingerprint[:12]})"))
    if not found:
        raise InvalidRequest(f"the key file {path} has no public key in it (PEM, `BEGIN PUBLIC KEY`)")
    return found


def _file(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as e:
        raise InvalidRequest(f"{path} can't be read: {e.strerror}") from e
    if len(data) > MOST_BYTES:
        raise InvalidRequest(f"{path} is larger than {MOST_BYTES} bytes")
    return data
