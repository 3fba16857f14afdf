"""Registries, and what opens them. Only those that the configuration names are tried: any other is a pod's choice."""

from __future__ import annotations

import json
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from modelmount.cli.examinations.finding import Finding, fail, ok, warn
from modelmount.config import Registry, Settings
from modelmount.oci.reference import split_port
from modelmount.transport.tls import trusting

ANSWER_SECONDS = 5.0


def credentials(settings: Settings) -> Iterator[Finding]:
    """The node's docker configuration."""
    name = settings.auth.docker_config
    if name is None:
        return
    path = Path(name)
    try:
        json.loads(path.read_bytes())
    except OSError as e:
        yield fail(
            "credentials", f"{path} can't be read: {e.strerror}", "mount the Secret there, or unset auth.docker_config"
        )
        return
    except ValueError:
        yield fail("credentials", f"{path} isn't JSON", "write it as `docker login` does")
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o007:
        yield warn("credentials", f"every user can read {path} (mode {mode:04o})", f"chmod 0600 {path}")
    else:
        yield ok("credentials", f"{path} can be read")


def registries(settings: Settings) -> Iterator[Finding]:
    """Whether the registries of the configuration answer, and with a certificate that we trust."""
    for host, registry in settings.registries.items():
        yield _registry(host, registry)


def _registry(host: str, registry: Registry) -> Finding:
    name, port = split_port(host)
    port = port or (80 if registry.plain_http else 443)
    try:
        context = None if registry.plain_http else trusting(registry.cas)
    except (OSError, ssl.SSLError) as e:
        return fail(
            "registry", f"{host}: {' or '.join(registry.cas)} can't be used: {e}", "put the CA's PEM file there"
        )
    try:
        with socket.create_connection((name.strip("[]"), port), ANSWER_SECONDS) as connection:
            if context is not None:
                context.wrap_socket(connection, server_hostname=name.strip("[]")).close()
    except ssl.SSLCertVerificationError as e:
        text = f"{host} has a certificate that isn't trusted: {e.verify_message}"
        return fail("registry", text, f'name its CA: [registries."{host}"] ca_file')
    except ssl.SSLError as e:
        return fail(
            "registry", f"{host} doesn't speak TLS: {e.reason}", f'[registries."{host}"] plain_http, if that is wanted'
        )
    except OSError as e:
        text = f"{host} can't be reached: {e.strerror or e}"
        return warn("registry", text, "start it, or look at DNS, routes and firewalls")
    return ok("registry", f"{host} answers{'' if registry.plain_http else ' with a certificate that is trusted'}")
