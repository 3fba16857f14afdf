"""The composition root: the only file that names concrete classes. The daemon and the command line use the same rooms,
put together the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelmount.config import Settings
from modelmount.content.store import Store
from modelmount.pull.puller import Puller
from modelmount.pull.resolver import Model, Resolver
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential, Credentials
from modelmount.sources.base import BlobSource
from modelmount.sources.registry import RegistrySource
from modelmount.volumes.leases import Leases
from modelmount.volumes.local import LocalMounts
from modelmount.volumes.publisher import Publisher

STOP_SECONDS = 5.0
"""How long `Node.close` waits for pulls to let go of their files."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Registries and what is known about who may read them. Thread-safe; no store, no rights needed."""

    client: Client
    credentials: Credentials

    def close(self) -> None:
        """End all connections; twice is harmless."""
        self.client.close()


@dataclass(frozen=True, slots=True)
class Shelf:
    """What is on this node: content, and who holds it. No network."""

    store: Store
    leases: Leases


@dataclass(frozen=True, slots=True)
class Node:
    """Everything a node does, over one store. Thread-safe; no thread runs until the first pull."""

    store: Store
    client: Client
    credentials: Credentials
    resolver: Resolver
    puller: Puller
    publisher: Publisher
    local: LocalMounts

    def interrupt(self) -> None:
        """Tell pulls to stop and wake whatever waits for a registry, publishes too; waits for nothing."""
        self.puller.stop(0)
        self.client.close()

    def close(self) -> None:
        """Stop pulls, whose bytes stay, and end all connections; twice is harmless."""
        self.interrupt()
        self.puller.stop(STOP_SECONDS)


def existing(settings: Settings) -> Shelf | None:
    """The store for reading, None where there is none. Raises Precondition when it can't be used."""
    if not Path(settings.root).exists():
        return None
    store = Store(Path(settings.root))
    return Shelf(store, Leases(store))


def connect(settings: Settings) -> Remote:
    """The way to the registries; nothing is sent yet."""
    return Remote(Client(settings), Credentials(settings))


def build(settings: Settings) -> Node:
    """All rooms of a node. Opens or creates the store; raises Precondition when it can't be used."""
    store, remote = Store(Path(settings.root)), connect(settings)
    client, credentials = remote.client, remote.credentials

    def source(model: Model, credential: Callable[[], Credential]) -> BlobSource:
        return RegistrySource(client, model.repository, credential)

    resolver = Resolver(store, client, prove=settings.auth.verification == "always")
    puller = Puller(store, resolver, source, settings)
    publisher = Publisher(store, resolver, puller, credentials, settings)
    local = LocalMounts(store, resolver, puller, credentials, settings)
    return Node(store, client, credentials, resolver, puller, publisher, local)
