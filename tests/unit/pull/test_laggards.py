"""Connections that are slow, and one among them that falls silent: by what the server is asked."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from modelmount import wiring
from modelmount.config import Settings
from modelmount.formats.selection import EVERYTHING
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.pull.job import Waiter
from modelmount.pull.resolver import Model
from modelmount.registry.credentials import Credential
from tests.fakes import push
from tests.fakes.wire import Answer, Asked, WireServer, blob

SECONDS = 60.0
CONTENT = random.Random(7).randbytes(40 << 20)
DRIP = (128 << 10, 0.01)
"""Some 12 MB/s a connection."""
SILENT_AFTER = 1 << 20


class Server:
    """A registry with one model, whose connections are slow; the `silent`-th range of its blob stops in the middle."""

    def __init__(self, wire: WireServer, silent: int | None) -> None:
        self._silent = silent
        self.ranges: list[tuple[int, int]] = []
        self.host = wire.host
        config = b"{}"
        document = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": manifests.OCI_MANIFEST,
                "artifactType": push.MODELPACK_ARTIFACT,
                "config": {
                    "mediaType": push.MODELPACK_CONFIG,
                    "digest": str(Digest.of(config)),
                    "size": len(config),
                },
                "layers": [
                    {
                        "mediaType": "application/vnd.cncf.model.weight.v1.raw",
                        "digest": str(Digest.of(CONTENT)),
                        "size": len(CONTENT),
                        "annotations": {"org.cncf.model.filepath": "model.bin"},
                    }
                ],
            }
        ).encode()
        self.manifest = Digest.of(document)
        wire.on(f"/v2/m/manifests/{self.manifest}", Answer(200, document, [("Content-Type", manifests.OCI_MANIFEST)]))
        wire.on(f"/v2/m/blobs/{Digest.of(config)}", Answer(200, config))
        wire.on(f"/v2/m/blobs/{Digest.of(CONTENT)}", self._blob)

    def _blob(self, asked: Asked) -> Answer:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers.get("range", ""))
        silent = False
        if found:
            self.ranges.append((int(found[1]), int(found[2]) + 1))
            silent = len(self.ranges) == self._silent
        answer = blob(CONTENT)(asked)
        return _spoiled(answer, drip=DRIP, stall_after=SILENT_AFTER if silent else None)


def _spoiled(answer: Answer, *, drip: tuple[int, float], stall_after: int | None) -> Answer:
    return Answer(answer.status, answer.body, answer.headers, drip=drip, stall_after=stall_after)


@pytest.fixture
def wire() -> Iterator[WireServer]:
    with WireServer() as server:
        yield server


def pull(root: Path, server: Server) -> int:
    """The bytes that were received for the model, which must come in whole."""
    settings = msgspec.convert(
        {
            "root": str(root),
            "registries": {server.host: {"plain_http": True}},
            "limits": {"free_bytes": 0},
            "pull": {"read_timeout_seconds": 10 * SECONDS},
        },
        Settings,
    )
    node = wiring.build(settings)
    try:
        job = node.puller.ensure(
            Model(Repository(server.host, "m"), server.manifest), EVERYTHING, Credential.anonymous()
        )
        tree = job.wait(Waiter(), SECONDS)
        assert tree is not None
        assert (tree.root / "model.bin").read_bytes() == CONTENT
        return job.progress.fetched_bytes
    finally:
        node.close()


def test_slow_connections_share_a_blob_in_few_requests(tmp_path: Path, wire: WireServer) -> None:
    server = Server(wire, None)
    assert pull(tmp_path / "store", server) == len(CONTENT)
    assert 2 <= len(server.ranges) <= 2 * len(CONTENT) // (8 << 20)


def test_a_connection_that_falls_silent_among_others_is_made_anew(
    tmp_path: Path, wire: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelmount.pull.rates.LAGGARD_SECONDS", 0.5)
    server = Server(wire, 2)
    assert pull(tmp_path / "store", server) == len(CONTENT)
    first, _ = server.ranges[1]
    assert len([start for start, _ in server.ranges if first <= start <= first + SILENT_AFTER]) > 1
