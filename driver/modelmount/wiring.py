"""The composition root: the only file that names concrete classes. The daemon and the command line use the same rooms,
put together the same way.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore
from typing import TYPE_CHECKING

import msgspec

from modelmount.cache.admission import Admission
from modelmount.cache.collector import Collector
from modelmount.config import Live, Settings, hosts
from modelmount.config.hosts import Host
from modelmount.content.asides import Asides
from modelmount.content.backoff import Backoff
from modelmount.content.store import Store
from modelmount.errors import Precondition
from modelmount.kube import account
from modelmount.kube.recorder import Recorder
from modelmount.kube.startup import StartupTaint
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.pull.puller import Puller
from modelmount.pull.resolver import Model, Resolver
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential, Credentials
from modelmount.registry.uploads import Uploads
from modelmount.signatures.finder import Finder
from modelmount.sources.base import BlobSource
from modelmount.sources.health import Health
from modelmount.sources.mirrored import MirroredSource
from modelmount.sources.ocilayout import Layout, LayoutDocuments, LayoutSource
from modelmount.sources.registry import RegistrySource
from modelmount.sources.throttled import Bandwidth, ThrottledSource
from modelmount.volumes.audit import Audit
from modelmount.volumes.local import LocalMounts
from modelmount.volumes.news import Tell
from modelmount.volumes.promise import Promises
from modelmount.volumes.publisher import Publisher

if TYPE_CHECKING:
    from modelmount.kube.api import Api

log = logging.getLogger(__name__)

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


class Mirrors:
    """The mirrors of `hosts_dir`, each with connections and tokens of its own: nothing of a pod's is shown to them, and
    nothing of the registry's. Thread-safe.
    """

    def __init__(self, settings: Settings, credentials: Credentials, store: Store) -> None:
        """Asks nobody yet. Raises InvalidRequest for mistakes in the directory."""
        self._credentials, self._store = credentials, store
        self._hosts, self._named = hosts.load(settings), frozenset(settings.registries)
        mirrors = list(self._hosts.all_mirrors())
        self._with_login = {
            each for each in mirrors if each.has_login or each.settings(settings).registry(each.authority).clients
        }
        places = {each.authority: Semaphore(settings.registry(each.authority).connections) for each in mirrors}
        self._health = Health(places={each.name: places[each.authority] for each in mirrors}, notes=Asides(store))
        self._clients = {host: Client(host.settings(settings), headers=host.headers) for host in mirrors}

    def before(self, origin: BlobSource, repository: Repository) -> BlobSource:
        """The blobs of `repository`: from its mirrors, and from `origin` where those don't do; `origin` alone where
        there are none. For a registry that no admin names no login is shown to a mirror: one that doesn't look which
        registry is meant would open its own repository of this name.
        """
        is_strange = repository.registry not in self._named and not self._hosts.has(repository.registry)
        mirrors = [
            self._source(host, repository, is_strange=is_strange)
            for host in self._hosts.mirrors(repository.registry)
            if not (is_strange and host in self._with_login)
        ]
        if not mirrors:
            return origin
        bar = functools.partial(_bar, self._store, repository.scope)
        return MirroredSource(origin, mirrors, self._health, bar, is_strange=is_strange)

    def close(self) -> None:
        """End all connections; twice is harmless."""
        for client in self._clients.values():
            client.close()

    def _source(self, host: Host, repository: Repository, *, is_strange: bool) -> BlobSource:
        there = Repository(host.authority, repository.repository)
        # containerd says so too: a mirror of several registries has no other way to know which one is meant.
        query = urllib.parse.urlencode({"ns": repository.registry})
        find = Credential.anonymous if is_strange else functools.partial(self._credentials.find, there, {})
        return RegistrySource(self._clients[host], there, find, name=host.name, query=query)


def _bar(store: Store, scope: str, digest: Digest, mirror: str) -> Backoff:
    return Backoff(store, digest, scope, mirror)


@dataclass(frozen=True, slots=True)
class Node:
    """Everything a node does, over one store. Thread-safe; no thread runs until the first pull."""

    store: Store
    client: Client
    mirrors: Mirrors
    credentials: Credentials
    resolver: Resolver
    collector: Collector
    puller: Puller
    publisher: Publisher
    local: LocalMounts
    audit: Audit

    def interrupt(self) -> None:
        """Tell pulls to stop and wake whatever waits for a registry, publishes too; waits for nothing."""
        self.puller.stop(0)
        self.client.close()
        self.mirrors.close()

    def close(self) -> None:
        """Stop pulls, whose bytes stay, and end all connections; twice is harmless."""
        self.interrupt()
        self.puller.stop(STOP_SECONDS)
        self.audit.close()


def connect(settings: Settings, api: Api | None = None) -> Remote:
    """The way to the registries; nothing is sent yet. `api` has the Secrets of service accounts."""
    return Remote(Client(hosts.load(settings).applied(settings)), Credentials(settings, api))


def api(settings: Settings) -> Api | None:
    """The API server, where a node's driver wants something of it; None, said once, where it has no account there."""
    if not settings.wants_api:
        return None
    try:
        return _api(settings)
    except Precondition as e:
        level = logging.WARNING if account.HOST in os.environ else logging.INFO
        log.log(level, "%s; doing without %s", e, settings.wants_api)
        return None


def _api(settings: Settings) -> Api:
    found = account.find(settings.kubernetes.account_dir, os.environ)
    from modelmount.kube.api import Api  # not before it is needed: it takes 8 MiB and a tenth of a second

    return Api(found)


def promises(settings: Settings) -> Promises:
    """The controller's half; the API server is asked for claims that name their model, and not before."""

    @functools.cache
    def claims() -> Api:
        return _api(settings)

    return Promises(claims)


@contextlib.contextmanager
def startup_taint(settings: Settings, api: Api | None) -> Iterator[None]:
    """Takes the startup taint off this node, inside the block: while the driver serves."""
    key = settings.kubernetes.startup_taint
    if api is None or not key:
        yield
        return
    with StartupTaint(api, node=settings.node_name, driver=settings.driver_name, key=key):
        yield


@contextlib.contextmanager
def events(settings: Settings, api: Api | None) -> Iterator[Tell | None]:
    """Tells pods of their models, inside the block; None where the admin or the cluster doesn't want that."""
    if api is None or not settings.kubernetes.events:
        yield None
        return
    with Recorder(api, component=settings.driver_name, node=settings.node_name) as recorder:
        yield recorder.tell


def uploads(
    settings: Settings, repository: Repository, secrets: Mapping[str, str], beside: Sequence[str] = ()
) -> Uploads:
    """The way into one repository, with the credential of `secrets` or the node's own; nothing is sent yet."""
    applied = hosts.load(settings).applied(settings)
    return Uploads(applied, repository, Credentials(settings).find(repository, secrets), beside=beside)


@dataclass(frozen=True, slots=True)
class FromLayout:
    """An image layout that is to be read in the registries' place, and which of its entries."""

    layout: Layout
    entry: Descriptor


def build(
    settings: Settings,
    live: Live | None = None,
    *,
    instead: FromLayout | None = None,
    api: Api | None = None,
    tell: Tell | None = None,
) -> Node:
    """All rooms of a node. Opens or creates the store; raises Precondition when it can't be used. `live` are the
    settings that may change meanwhile; without it none does. `api` has what the cluster knows; pods are told of their
    models by `tell`.

    With `instead`, everything that is resolved and pulled comes from a layout, whatever it is called, and no registry
    is asked. A layout's word is nobody's proof of access: none is recorded.
    """
    live = live or Live(settings, lambda: settings)
    store, remote = Store(Path(settings.root)), connect(settings, api)
    client, credentials = remote.client, remote.credentials
    mirrors = Mirrors(settings, credentials, store)
    bandwidth = Bandwidth(settings.pull.bytes_per_second) if settings.pull.bytes_per_second else None

    def source(model: Model, credential: Callable[[], Credential], is_awaited: Callable[[], bool]) -> BlobSource:
        if instead is not None:
            return LayoutSource(instead.layout)
        found = mirrors.before(RegistrySource(client, model.repository, credential), model.repository)
        return ThrottledSource(found, bandwidth, is_awaited) if bandwidth is not None else found

    if instead is None:
        resolver = Resolver(store, client, settings.auth)
    else:
        unproved = msgspec.structs.replace(settings.auth, verification="never")
        resolver = Resolver(store, LayoutDocuments(instead.layout, instead.entry), unproved)
    collector = Collector(store, lambda: live.cache)
    puller = Puller(store, resolver, source, Admission(collector, live), settings)
    audit = Audit(settings.audit_file, settings.audit_bytes)
    finder = Finder(store, client)
    publisher = Publisher(store, resolver, puller, credentials, settings, audit=audit, signatures=finder, tell=tell)
    local = LocalMounts(store, resolver, puller, credentials, settings)
    return Node(store, client, mirrors, credentials, resolver, collector, puller, publisher, local, audit)
