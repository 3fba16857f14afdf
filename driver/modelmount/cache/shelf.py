"""What is on this node, for who only looks: no registry, and nothing that a pull needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelmount.cache.collector import Collector
from modelmount.config import Settings
from modelmount.content import store as stores
from modelmount.content.store import Store
from modelmount.volumes.leases import Leases


@dataclass(frozen=True, slots=True)
class Shelf:
    """Content, and who holds it. No network."""

    store: Store
    leases: Leases
    collector: Collector


def existing(settings: Settings, *, to_look: bool = False) -> Shelf | None:
    """The store for reading, None where there is none; `to_look` changes nothing of it, not even an older version's
    layout. Raises Precondition when it can't be used, or is something else.
    """
    root = Path(settings.root)
    if not root.exists():
        return None
    if to_look and not (root / "version").exists() and stores.foreign_entry(root) is None:
        return None
    store = Store(root, to_look=to_look)
    return Shelf(store, Leases(store), Collector(store, lambda: settings.cache))
