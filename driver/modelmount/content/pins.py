"""Pins: `models/<hex>/pins/<name>.json`, one for each reference somebody wants kept. A pinned model is never evicted.

A pin holds the digest that its reference meant when it was pinned; when the tag moves, it is pinned again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from modelmount.content.diskerrors import translated
from modelmount.content.store import Store
from modelmount.oci.digest import Digest
from modelmount.system import atomic

log = logging.getLogger(__name__)


class Pin(msgspec.Struct, frozen=True):
    """Somebody's wish to keep a model. `until` is in wall-clock seconds; None means until it is unpinned."""

    reference: str
    manifest: str
    at: float
    until: float | None = None

    @property
    def stands(self) -> bool:
        """Whether it still holds its model."""
        return self.until is None or time.time() < self.until


def add(store: Store, pin: Pin) -> None:
    """Pin durably, in place of earlier pins of the same reference, whatever digest they hold. Raises NoSpace,
    Internal.
    """
    model = store.root / "models" / Digest.parse(pin.manifest).hex
    with store.locks.shared(), translated(f"pin {pin.reference}"):
        for directory in (model, model / "pins"):
            if not directory.exists():
                directory.mkdir(mode=0o700, exist_ok=True)
                atomic.fsync_directory(directory.parent)
        path = model / "pins" / _name(pin.reference)
        atomic.write_file(path, msgspec.json.encode(pin))
        for earlier in (store.root / "models").glob(f"*/pins/{path.name}"):
            if earlier != path:
                earlier.unlink(missing_ok=True)


def remove(store: Store, reference: str) -> list[Pin]:
    """Unpin whatever digests this reference was pinned on; the pins that went. Raises NoSpace, Internal."""
    gone = []
    with store.locks.shared(), translated(f"unpin {reference}"):
        for path in (store.root / "models").glob(f"*/pins/{_name(reference)}"):
            pin = _read(path)
            path.unlink(missing_ok=True)
            atomic.fsync_directory(path.parent)
            if pin is not None:
                gone.append(pin)
    return gone


def walk(store: Store) -> Iterator[Pin]:
    """Every pin, over or not. An unreadable one holds the model it lies with, and is logged."""
    for path in (store.root / "models").glob("*/pins/[0-9a-f]*.json"):
        pin = _read(path)
        if pin is not None:
            yield pin


def _name(reference: str) -> str:
    return f"{hashlib.sha256(reference.encode()).hexdigest()}.json"


def _read(path: Path) -> Pin | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Pin)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as e:
        log.error("the pin %s is unreadable and holds its model; remove the file or pin again: %s", path, e)
        hex_digits = path.parent.parent.name
        return Pin("", f"{'sha512' if len(hex_digits) == 128 else 'sha256'}:{hex_digits}", 0.0)
