"""What the schema's types can't say: paths, sockets, hosts, and what must not go together."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from modelmount.config import hosts, spelling, words
from modelmount.config.schema import Settings

SOCKET_PATH_BYTES = 107
"""Longest path of a unix socket (man 7 unix)."""
NODE_ID_BYTES = 256
"""Longest node id (CSI, NodeGetInfoResponse.node_id)."""

_SHARED = re.compile(
    r"/((bin|boot|dev|etc|home|lib|lib64|media|mnt|opt|proc|root|run|sbin|srv|sys|tmp|usr(/local)?|var)"
    r"|var/(cache|lib|lib/kubelet|log|run|tmp))?",
    re.ASCII,
)
"""Directories that belong to everybody: one of these as the store would lose its mode and its neighbours their way."""

_FILES_OF_HOSTS = ("ca_file", "client_certificate", "client_key", "proxy_login_file")
_DRIVER_NAME = re.compile(r"[a-zA-Z](?:[a-zA-Z0-9._-]{0,61}[a-zA-Z])?", re.ASCII)
_TAINT = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII
)
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_GLOB = re.compile(r"[a-z0-9.:*?!\[\]-]+", re.ASCII)
_PREFIX = re.compile(r"\*|[a-z0-9][a-z0-9.:\[\]-]*(?:/[a-z0-9][a-z0-9._-]*)*(?:/\*)?", re.ASCII)
_ADDRESS = re.compile(r"(?:[A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})", re.ASCII)


def problems(settings: Settings) -> list[str]:
    """Every mistake in values whose types are right, one sentence each."""
    checks = (_paths, _programs, _sockets, _names, _hosts, _mirrors, _cache)
    return [problem for check in checks for problem in check(settings)]


def _paths(settings: Settings) -> Iterator[str]:
    named = {
        "root": settings.root,
        "kubelet_root": settings.kubelet_root,
        "registration_dir": "" if settings.registration_dir == "none" else settings.registration_dir,
        "registration_endpoint": settings.registration_endpoint.removeprefix("unix://"),
        "auth.docker_config": settings.auth.docker_config,
        "auth.provider_config": settings.auth.provider_config,
        "auth.program_dir": settings.auth.program_dir,
        "hosts_dir": settings.hosts_dir,
        "proxy_login_file": settings.proxy_login_file,
        "policy_file": settings.policy_file,
        "audit_file": settings.audit_file,
        "kubernetes.account_dir": settings.kubernetes.account_dir,
        "cache.kubelet_config": settings.cache.kubelet_config,
        **{f"cache.image_roots[{n}]": path for n, path in enumerate(settings.cache.image_roots)},
        **{f"target_roots[{n}]": path for n, path in enumerate(settings.target_roots)},
        **{
            f'registries."{host}".{name}': getattr(each, name)
            for host, each in settings.registries.items()
            for name in _FILES_OF_HOSTS
        },
        **{
            f'registries."{host}".ca_files[{n}]': file
            for host, each in settings.registries.items()
            for n, file in enumerate(each.ca_files)
        },
        **{
            f'registries."{host}".client_certificates[{n}][{m}]': file
            for host, each in settings.registries.items()
            for n, files in enumerate(each.client_certificates)
            for m, file in enumerate(files)
        },
    }
    required = {
        "root",
        "kubelet_root",
        "proxy_login_file",
        *(k for k in named if k.startswith("auth.")),
        *(k for k in named if k.endswith(("]", *_FILES_OF_HOSTS))),
    }
    for key, path in named.items():
        if path is None or (not path and key not in required):
            continue
        if not path.startswith("/") or "\0" in path:
            yield f"{key} must be an absolute path, not {words.shown(path)}"
    if settings.mode != "controller" and settings.root.startswith("/"):
        yield from _places(settings)


def _places(settings: Settings) -> Iterator[str]:
    """The store is made 0700 and swept: it must be a directory of its own."""
    root = Path(os.path.normpath(settings.root))
    if _SHARED.fullmatch(str(root)):
        yield f"root must be a directory of the store's own, such as /var/lib/modelmount, not {settings.root}"
        return
    for place in (settings.kubelet_root, *settings.target_roots):
        if Path(os.path.normpath(place)).is_relative_to(root):
            yield f"root {words.shown(settings.root)} must not hold {place}: pods' volumes cannot lie in the store"


def _sockets(settings: Settings) -> Iterator[str]:
    path = settings.socket_path
    if not settings.endpoint.startswith("unix://") or not path.is_absolute():
        yield f"endpoint must be unix:// and an absolute path, not {words.shown(settings.endpoint)}"
    elif len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        yield f"endpoint {path} is longer than the {SOCKET_PATH_BYTES} bytes a unix socket's path may have"
    if settings.mode != "controller" and settings.plugins_registry is not None:
        registration = settings.plugins_registry / f"{settings.driver_name}-reg.sock"
        if len(os.fsencode(registration)) > SOCKET_PATH_BYTES:
            yield (
                f"the registration socket {registration} is longer than the {SOCKET_PATH_BYTES} bytes a unix socket's "
                "path may have; choose another registration_dir or a shorter driver_name"
            )
    if settings.metrics_address:
        match = _ADDRESS.fullmatch(settings.metrics_address)
        if match is None or int(match["port"]) > 65535:
            yield f"metrics_address must be host:port or :port, not {words.shown(settings.metrics_address)}"


def _programs(settings: Settings) -> Iterator[str]:
    if settings.auth.provider_config is not None and settings.auth.program_dir is None:
        yield "auth.provider_config needs auth.program_dir, the directory with the programs it names"
    for pattern in settings.auth.preloaded:
        if not _PREFIX.fullmatch(pattern):
            yield (
                f"auth.preloaded: {words.shown(pattern)} must be a repository such as harbor.example.com/llm/llama3, a "
                "prefix such as harbor.example.com/llm/*, or *"
            )


def _names(settings: Settings) -> Iterator[str]:
    if not _DRIVER_NAME.fullmatch(settings.driver_name):
        yield (
            "driver_name must have up to 63 letters, digits, '.', '_' and '-', a letter first and last, not "
            f"{words.shown(settings.driver_name)}"
        )
    if settings.kubernetes.startup_taint and not _TAINT.fullmatch(settings.kubernetes.startup_taint):
        yield (
            "kubernetes.startup_taint must be the key of a taint, such as modelmount.io/driver-not-ready, not "
            f"{words.shown(settings.kubernetes.startup_taint)}"
        )
    if settings.kubernetes.capacity and settings.mode != "all":
        yield (
            f"kubernetes.capacity needs mode all, not {settings.mode}: csi-provisioner asks the node's driver for its "
            "capacity, and to create volumes"
        )
    if len(settings.node_id.encode()) > NODE_ID_BYTES or not settings.node_id.isprintable():
        yield f"node_id must have at most {NODE_ID_BYTES} printable bytes, not {words.shown(settings.node_id)}"


def _cache(settings: Settings) -> Iterator[str]:
    cache = settings.cache
    if cache.low_watermark is not None and cache.high_watermark is None:
        yield "cache.low_watermark needs a cache.high_watermark above it"
    elif cache.low_watermark is not None and cache.low_watermark >= (cache.high_watermark or 0):
        yield f"cache.low_watermark {cache.low_watermark} must be below cache.high_watermark {cache.high_watermark}"
    for name in cache.namespaces:
        if not _NAMESPACE.fullmatch(name):
            yield f"cache.namespaces: {words.shown(name)} is no name of a namespace; write team-a"
    for text in cache.pins:
        if not text or not text.isprintable() or " " in text:
            yield f"cache.pins: {words.shown(text)} is no reference; write harbor.example.com/llm/llama3:v1"


def _hosts(settings: Settings) -> Iterator[str]:
    for host, registry in settings.registries.items():
        if not spelling.is_host(host):
            yield f"registries: {words.shown(host)} must be {spelling.HOST_WORDS}"
        if registry.client_key is not None and registry.client_certificate is None:
            yield f'registries."{host}".client_key needs a client_certificate'
        if registry.client_certificate is not None and registry.client_certificates:
            yield f'registries."{host}" has both client_certificate and client_certificates; write all into the latter'
        if registry.proxy != "direct" and not spelling.is_proxy(registry.proxy):
            yield f'registries."{host}".proxy: {words.shown(registry.proxy)} must be direct, or {spelling.PROXY_WORDS}'
        if registry.proxy_login_file is not None and registry.proxy in {"", "direct"}:
            yield f'registries."{host}".proxy_login_file needs a proxy of this host'
        if registry.ca_file is not None and registry.ca_files:
            yield f'registries."{host}" has both ca_file and ca_files; write all into the latter'
        if registry.plain_http and registry.cas:
            yield f'registries."{host}" has both plain_http and ca_file; without TLS there is no CA to trust'
        if registry.server and hosts.api_root(registry.server, override=True) != registry.server:
            yield (
                f'registries."{host}".server must be a URL such as https://registry.example.com/v2, not '
                f"{words.shown(registry.server)}"
            )
        elif registry.server.startswith("http://") and not registry.plain_http:
            yield f'registries."{host}".server is http, which needs plain_http = true'
        for realm in registry.trusted_realms:
            if not spelling.is_host(realm):
                yield f'registries."{host}".trusted_realms: {words.shown(realm)} must be {spelling.HOST_WORDS}'
    if not spelling.is_proxy(settings.proxy):
        yield f"proxy: {words.shown(settings.proxy)} must be {spelling.PROXY_WORDS}"
    if settings.proxy_login_file is not None and not settings.proxy:
        yield "proxy_login_file needs a proxy"
    for pattern in settings.allowed_registries:
        if not _GLOB.fullmatch(pattern):
            yield (
                f"allowed_registries: {words.shown(pattern)} must be a glob of hosts such as *.example.com or "
                "harbor.example.com:8443, in lower case, without scheme or path"
            )


def _mirrors(settings: Settings) -> list[str]:
    return hosts.read(settings.hosts_dir)[1] if settings.hosts_dir.startswith("/") else []
