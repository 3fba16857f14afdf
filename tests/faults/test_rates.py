"""How fast bytes come from a real registry: one connection far below the others, and the limit that an admin set.

By what the registry sent and was asked; no clock of the machine's is looked at.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from modelmount import wiring
from modelmount.cli import pulling
from modelmount.config import Pull, Registry, Settings
from modelmount.config.schema import Limits
from modelmount.registry.credentials import Credential
from modelmount.sources.throttled import Bandwidth
from modelmount.volumes.volume import VolumeSpec
from tests.e2e.conftest import contents, random_bytes
from tests.fakes import push, registry
from tests.fakes.gateway import Fault, Gateway
from tests.fakes.wire import Answer, Asked

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

MIB = 1 << 20
WEIGHTS_BYTES = 40 * MIB
USUAL = (128 << 10, 0.03)
"""Some 4 MB/s a connection: slow, so that a blob is divided."""
CRAWL = (1 << 10, 0.05)
"""20 KB/s at most."""
REPLACED_BYTES = MIB
"""What it brings in the best part of a minute; whoever asks from before that on asks in its place."""
PATIENT = Pull(connect_timeout_seconds=100, read_timeout_seconds=100, document_timeout_seconds=100)
LIMIT = 1_000_000
"""Bytes a second."""


@contextlib.contextmanager
def node_at(root: Path, host: str, pull: Pull = PATIENT) -> Iterator[wiring.Node]:
    made = wiring.build(
        Settings(
            root=str(root),
            registries={host: Registry(plain_http=True)},
            pull=pull,
            limits=Limits(free_bytes=0),
        )
    )
    try:
        yield made
    finally:
        made.close()


def pulled(node: wiring.Node, reference: str) -> dict[str, bytes]:
    spec = VolumeSpec.parse({"model": reference, "pullPolicy": "Always"})
    _, tree = pulling.pull(node, spec, Credential.anonymous(), threading.Event())
    return contents(tree.root)


def model(directory: Path, sizes: list[int], seed: int) -> dict[str, bytes]:
    directory.mkdir()
    for number, size in enumerate(sizes):
        (directory / f"part-{number}.bin").write_bytes(random_bytes(size, seed + number))
    return contents(directory)


class Crawling:
    """A gateway's answers for one blob: all slow, and the first one from its middle crawls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.starts: list[int] = []
        self.crawled: int | None = None

    def __call__(self, asked: Asked, gateway: Gateway) -> Answer:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", ""))
        crawls = False
        with self._lock:
            self.starts.append(int(found[1]) if found else 0)
            if self.starts[-1] > 0 and self.crawled is None:
                self.crawled, crawls = self.starts[-1], True
        return replace(gateway.forward(asked), drip=CRAWL if crawls else USUAL)


def test_a_connection_far_below_its_siblings_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmount.pull.rates.LAGGARD_SECONDS", 0.3)
    files = model(tmp_path / "model", [WEIGHTS_BYTES], 1)
    with registry.Registry(tmp_path / "registry") as started, Gateway(started) as gateway:
        pushed = push.Pusher(started.host, started.connection).artifact("llm/big", "v1", push.oras(tmp_path / "model"))
        (weights,) = pushed.layers
        answers = Crawling()
        gateway.play(Fault(lambda asked: asked.path.endswith(f"/blobs/{weights}"), answers, None))
        with node_at(tmp_path / "store", gateway.host) as node:
            assert pulled(node, f"{gateway.host}/llm/big:v1") == files
    assert answers.crawled is not None
    there = [start for start in answers.starts if 0 <= start - answers.crawled < REPLACED_BYTES]
    assert len(there) > 1, answers.starts


class Clock:
    """A clock that only sleepers move, at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


def test_what_registries_send_keeps_to_the_limit_for_all_pulls_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(wiring, "Bandwidth", lambda rate: Bandwidth(rate, clock, clock.sleep))
    sizes = [3 * MIB + 5, *[20_000] * 40]
    names = ("one", "two")
    with registry.Registry(tmp_path / "registry") as started:
        pusher = push.Pusher(started.host, started.connection)
        files = {}
        for number, name in enumerate(names):
            files[name] = model(tmp_path / name, sizes, 100 * number)
            pusher.artifact(f"llm/{name}", "v1", push.oras(tmp_path / name))
        started.forget()
        limited = Pull(bytes_per_second=LIMIT)
        with node_at(tmp_path / "store", started.host, limited) as node, ThreadPoolExecutor(len(names)) as threads:
            found = dict(
                zip(names, threads.map(lambda n: pulled(node, f"{started.host}/llm/{n}:v1"), names), strict=True)
            )
        sent = sum(each.size for each in started.requests() if each.method == "GET" and each.digest)
    assert found == files
    assert sent >= len(names) * sum(sizes)  # nothing of it came from anywhere else
    assert clock.now * LIMIT >= len(names) * sum(sizes) - 1  # but for how floats are rounded
