"""Asking a scripted server through the real pool."""

import time
from collections.abc import Mapping
from typing import Any, Literal

from modelmount.config import Pull, Registry, Settings
from modelmount.transport.body import Body
from modelmount.transport.pool import Answer, Pool, Request
from modelmount.transport.url import Url
from tests.fakes.wire import WireServer

QUICK = Pull(connect_timeout_seconds=5, read_timeout_seconds=2, document_timeout_seconds=5)
"""For servers that fall silent."""


def settings_for(*servers: WireServer, pull: Pull | None = None, **registry: Any) -> Settings:
    """The admin lists these servers, http ones with plain_http."""
    hosts = {each.host: Registry(plain_http=each.url.startswith("http:"), **registry) for each in servers}
    return Settings(registries=hosts, pull=pull or Pull(connect_timeout_seconds=5, read_timeout_seconds=5))


def soon() -> float:
    """A deadline that no healthy answer misses."""
    return time.monotonic() + 10


def request(
    server: WireServer,
    path: str,
    *,
    method: Literal["GET", "HEAD", "POST"] = "GET",
    headers: Mapping[str, str] | None = None,
) -> Request:
    return Request(method, Url.parse(server.url + path), server.host, "llm/tiny:v1", headers or {})


def get(pool: Pool, server: WireServer, path: str, **options: Any) -> Answer:
    return pool.send(request(server, path, **options), soon())


def drain(body: Body, size: int = 1 << 17) -> bytes:
    """Everything `readinto` delivers, until it ends; the body is closed whatever happens."""
    with body:
        view, data = memoryview(bytearray(size)), bytearray()
        while count := body.readinto(view):
            data += view[:count]
        return bytes(data)
