"""Cold pulls of large blobs from a server that gives all it has: (a) one of 4 GiB, (b) eight of 512 MiB, and both over
TLS.

Everybody writes to the same file system and reads blobs that the server has in memory; client and server share the
machine's processors. modelmount verifies each blob, makes everything durable and mounts it.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench import artifact, memory, peers
from bench.peers import Target
from bench.pulls import compare
from bench.report import Outcome
from bench.servers import DockerRegistry, Nginx, Server
from bench.setting import Setting
from tests.fakes.registry import Registry, Tls

GIB, MIB = 1 << 30, 1 << 20
TLS_ADDRESS = "127.0.0.2"
"""Programs in Go take a registry at localhost or 127.0.0.1 for one without TLS."""
GO_NOTE = (
    "A program built with Go before 1.21 hashes without the processor's SHA instructions: a newer build is faster."
)


def one(setting: Setting) -> Outcome:
    """(a) from nginx."""
    return _run(setting, "a", 1, "nginx")


def one_from_registry(setting: Setting) -> Outcome:
    """(a) from docker-registry."""
    return _run(setting, "a-registry", 1, "docker-registry")


def several(setting: Setting) -> Outcome:
    """(b) from nginx."""
    return _run(setting, "b", 8, "nginx")


def one_over_tls(setting: Setting) -> Outcome:
    """(e), as a."""
    return _run(setting, "e-a", 1, "nginx over TLS 1.3")


def several_over_tls(setting: Setting) -> Outcome:
    """(e), as b."""
    return _run(setting, "e-b", 8, "nginx over TLS 1.3")


def _run(setting: Setting, case: str, blobs: int, server: str) -> Outcome:
    total = setting.size(4 * GIB, 128 * MIB)
    site = setting.directory / "site"
    made = artifact.raw(site, [total // blobs] * blobs)
    with ExitStack() as stack:
        serving: Server
        if server == "docker-registry":
            registry = stack.enter_context(Registry(setting.directory / "registry"))
            artifact.publish(registry, made)
            stored = [registry.blob_file(layer.digest) for layer in made.layers]
            serving = DockerRegistry(registry)
        else:
            address = TLS_ADDRESS if "TLS" in server else "127.0.0.1"
            tls = Tls.make(setting.directory / "tls", address) if "TLS" in server else None
            stored = [layer.path for layer in made.layers]
            serving = stack.enter_context(Nginx(setting.directory / "nginx", site, tls=tls, address=address))
        stack.enter_context(memory.pinned(stored))
        target = Target(serving, made, setting.directory / "p")
        title = f"{blobs} x {total // blobs / MIB:.0f} MiB from {server}"
        return compare(case, title, target, peers.ALL, setting, notes=[GO_NOTE])
