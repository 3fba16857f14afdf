"""What the admin's settings say about one connection: which CAs count, how far it may reach, whether it may do without
TLS. Pure: the pool applies it, and connections are shared only among equals.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from modelmount.config import Registry, Settings
from modelmount.errors import Forbidden
from modelmount.transport.addresses import Reach
from modelmount.transport.certificates import Client
from modelmount.transport.url import Url


@dataclass(frozen=True, slots=True)
class Trust:
    """`ca_files` count instead of the system's CAs, or, with `system_cas`, beside them. `clients` are the certificates
    to show, `proxy` what to go through, `proxy_login` the file with what that wants to know.
    """

    reach: Reach
    ca_files: tuple[str, ...] = ()
    system_cas: bool = False
    clients: tuple[Client, ...] = ()
    proxy: str = ""
    proxy_login: str | None = None


def judge(settings: Settings, registry: str, url: Url) -> Trust:
    """How to connect to `url` on behalf of `registry` (as it stands in references): the registry itself, its token
    server, or the storage that it redirects to.

    A host that the admin lists (a key of `registries`, or one of this registry's `trusted_realms`) may have any
    address. Others stay off this node's loopback, its link and metadata services; loopback is fine for what a registry
    that the admin lists on loopback leads to. The node's address in its network is one like any other: pods reach it
    themselves, and a service or an ingress on this very node has it too. The registry's CA files alone count on its own
    host; where it sends us, they count beside the system's. A client certificate is shown to the host it is listed for
    only. Both on behalf of registries that are listed, too: anybody may run another one, and lead us with the node's
    rights to where pods have none. Raises Forbidden for http unless the admin listed this registry with `plain_http`.
    """
    own = settings.registry(registry)
    listed = next((host for host in settings.registries if url.is_named(host)), None)
    if url.scheme == "http" and not own.plain_http:
        raise Forbidden(
            f"{url.authority} is to be asked over plain http; only the admin can allow that, with plain_http for "
            f"{registry}"
        )
    at_home = url.host == _host(own.server or f"{url.scheme}://{registry}")
    is_known = at_home or registry in settings.registries
    named = is_known and (listed is not None or any(map(url.is_named, own.trusted_realms)))
    reach = _reach(settings, registry, named=named, at_home=at_home)
    there = settings.registries[listed] if listed is not None else own if at_home else None
    clients = there.clients if there is not None and is_known else ()
    proxy, login = _proxy(settings, listed, own, url)
    if listed is not None and settings.registries[listed].cas:
        return Trust(reach, settings.registries[listed].cas, clients=clients, proxy=proxy, proxy_login=login)
    if not own.cas:
        return Trust(reach, system_cas=True, clients=clients, proxy=proxy, proxy_login=login)
    return Trust(reach, own.cas, system_cas=not at_home, clients=clients, proxy=proxy, proxy_login=login)


def _proxy(settings: Settings, listed: str | None, own: Registry, url: Url) -> tuple[str, str | None]:
    """What to go through, and with which login: the word on the host itself, on the registry that led there, on all;
    empty for nothing. This node itself, such as a mirror on it, is behind no proxy that isn't named for it.
    """
    for said in (settings.registry(listed) if listed is not None else own, own):
        if said.proxy:
            return ("", None) if said.proxy == "direct" else (said.proxy, said.proxy_login_file)
    return ("", None) if _is_loopback(url.host) else (settings.proxy, settings.proxy_login_file)


def _reach(settings: Settings, registry: str, *, named: bool, at_home: bool) -> Reach:
    if named:
        return Reach.ANYWHERE
    if registry not in settings.registries:
        return Reach.NETWORK
    if at_home:
        return Reach.ANYWHERE
    return Reach.NETWORK_AND_LOOPBACK if _is_loopback(_host(f"https://{registry}")) else Reach.NETWORK


def _host(url: str) -> str:
    try:
        return Url.parse(url).host
    except ValueError:
        return ""  # the same as no URL that is ever asked


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
