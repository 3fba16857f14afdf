"""What the cases rest on: servers that serve as registries do and say what they sent, and a link that is late."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from bench import artifact
from bench.link import SERVER_ADDRESS, Link
from bench.paced import Answer, Paced
from bench.peers import Aria2, Curl, CurlOpenssl, Skopeo, Target, present
from bench.servers import DockerRegistry, Nginx, Server
from tests.fakes.registry import Registry, Tls

SIZES = (300_000, 5)


@pytest.fixture
def made(tmp_path: Path) -> artifact.Artifact:
    return artifact.raw(tmp_path / "site", SIZES)


def test_an_artifact_is_the_same_each_time(made: artifact.Artifact, tmp_path: Path) -> None:
    again = artifact.raw(tmp_path / "again", SIZES)
    assert again.document == made.document
    assert [layer.path.stat().st_size for layer in made.layers] == list(SIZES)


def test_nginx_says_what_it_sent(made: artifact.Artifact, tmp_path: Path) -> None:
    with Nginx(tmp_path / "nginx", tmp_path / "site") as server:
        sample = Curl(Target(server, made, tmp_path / "p")).run()
        assert sample.wall > 0
        assert server.served() == sum(SIZES)
        assert server.served() == 0


def test_what_was_pulled_is_gone_or_aside_after_a_run(made: artifact.Artifact, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    with Nginx(tmp_path / "nginx", tmp_path / "site") as server:
        Curl(Target(server, made, tmp_path / "p")).run()
        assert not (tmp_path / "p").exists()
        for _ in range(2):
            Curl(Target(server, made, tmp_path / "p", aside)).run()
    assert not (tmp_path / "p").exists()
    for run in ("0", "1"):
        pulled = [path.stat().st_size for path in (aside / run).iterdir() if path.name.isdigit()]
        assert sorted(pulled) == sorted(SIZES)


def test_nginx_over_tls_serves_whoever_trusts_it(made: artifact.Artifact, tmp_path: Path) -> None:
    tls = Tls.make(tmp_path / "tls", "127.0.0.2")
    with Nginx(tmp_path / "nginx", tmp_path / "site", tls=tls, address="127.0.0.2") as server:
        for kind in (Curl, CurlOpenssl, Skopeo):
            kind(Target(server, made, tmp_path / "p")).run()
        assert server.served() == 3 * sum(SIZES) + 2  # and the config, for skopeo


@pytest.mark.registry
def test_a_registry_serves_the_same_artifact(made: artifact.Artifact, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        artifact.publish(registry, made)
        server: Server = DockerRegistry(registry)
        server.served()
        Skopeo(Target(server, made, tmp_path / "p")).run()
        assert server.served() == sum(SIZES) + 2


def test_a_paced_connection_takes_its_time_and_tells_what_was_cut(made: artifact.Artifact, tmp_path: Path) -> None:
    with Paced(tmp_path / "paced", tmp_path / "site", 1_000_000) as server:
        url = Target(server, made, tmp_path / "p").urls[0]
        subprocess.run(["curl", "-fsS", "-r", "7-299999", "-o", str(tmp_path / "got"), url], check=True)
        assert (tmp_path / "got").read_bytes() == made.layers[0].path.read_bytes()[7:]
        assert server.answers() == [Answer(299_993, 299_993)]


@pytest.mark.mount
def test_a_late_link_carries_everything_after_its_time(made: artifact.Artifact, tmp_path: Path) -> None:
    round_trip = 0.05
    with Link(round_trip) as link:
        server = Nginx(tmp_path / "nginx", tmp_path / "site", address=SERVER_ADDRESS)
        with link.inside("server"):
            server.__enter__()
        try:
            with link.inside("client"):
                started = time.monotonic()
                Curl(Target(server, made, tmp_path / "p")).run()
                # a lower bound: a connection, then an answer
                assert time.monotonic() - started > 2 * round_trip
            assert server.served() == sum(SIZES)
        finally:
            server.__exit__(None, None, None)


def test_a_missing_client_has_a_reason(
    made: artifact.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    server = Nginx(tmp_path / "nginx", tmp_path / "site")
    found, reasons = present([Aria2], Target(server, made, tmp_path / "p"))
    assert not found
    assert "scripts/peers" in reasons["aria2c"]


def test_the_manifest_names_every_layer(made: artifact.Artifact) -> None:
    document = json.loads(made.document)
    assert [layer["digest"] for layer in document["layers"]] == [layer.digest for layer in made.layers]
