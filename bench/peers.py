"""The other clients, each with one pull of one artifact into a directory that is new each time."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench import processes
from bench.processes import FailedError
from bench.rounds import Sample
from tests.fakes.driver import Host
from tests.fakes.push import Pushed

CONTAINERD_SECONDS = 30.0


class Server(Host, Protocol):
    """Where it is pulled from: a registry, or something that serves a registry's blobs."""

    @property
    def url(self) -> str:
        """Scheme and host."""

    @property
    def pid(self) -> int:
        """The process whose CPU is the server's."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """What everybody pulls, and from where. `files` has digest and size of each layer, as their sum is checked."""

    registry: Server
    pushed: Pushed

    @property
    def urls(self) -> list[str]:
        """The layers' own URLs."""
        base = f"{self.registry.url}/v2/{self.pushed.repository}/blobs"
        return [f"{base}/{digest}" for digest in self.pushed.layers]


class Curl:
    """All layers into files by one curl over one connection: no digest is checked. What the transport alone costs."""

    name = "curl -o (not verified)"

    def __init__(self, artifact: Artifact, directory: Path) -> None:
        self._artifact, self._directory = artifact, directory

    def run(self) -> Sample:
        """One pull."""
        with _fresh(self._directory) as place:
            arguments = [part for n, url in enumerate(self._artifact.urls) for part in ("-o", str(place / f"{n}"), url)]
            sample = processes.run(["curl", "-fsS", *arguments], place / "words")
            _check_size(place, self._artifact)
            return sample


class CurlSha256:
    """Each layer through `openssl dgst`: verified, but not stored. A lower bound for a pull by shell script."""

    name = "curl | openssl sha256 (not stored)"

    def __init__(self, artifact: Artifact, directory: Path) -> None:
        self._artifact, self._directory = artifact, directory

    def run(self) -> Sample:
        """One pull."""
        script = 'set -e; for url in "$@"; do curl -fsS "$url" | openssl dgst -sha256 -r; done'
        with _fresh(self._directory) as place:
            sample = processes.run(["sh", "-c", script, "sh", *self._artifact.urls], place / "words")
            found = [f"sha256:{line.split()[0]}" for line in (place / "words").read_text().splitlines()]
            if found != list(self._artifact.pushed.layers):
                raise FailedError(f"curl | openssl found the digests {found}")
            return sample


class Skopeo:
    """`skopeo copy` into a `dir:`."""

    name = "skopeo copy"

    def __init__(self, artifact: Artifact, directory: Path) -> None:
        self._artifact, self._directory = artifact, directory

    def run(self) -> Sample:
        """One pull."""
        with _fresh(self._directory) as place:
            source, destination = f"docker://{self._artifact.pushed.reference}", f"dir:{place / 'image'}"
            options = ["--quiet", "--src-tls-verify=false"]
            command = ["skopeo", "--insecure-policy", "copy", *options, source, destination]
            sample = processes.run(command, place / "words")
            _check_size(place / "image", self._artifact)
            return sample


class Ctr:
    """`ctr content fetch` into a containerd of its own, started before the clock; the daemon's CPU is counted too."""

    name = "ctr content fetch"

    def __init__(self, artifact: Artifact, directory: Path) -> None:
        self._artifact, self._directory = artifact, directory

    def run(self) -> Sample:
        """One pull."""
        with _fresh(self._directory) as place, _containerd(place) as (address, pid):
            before = processes.cpu_seconds(pid)
            command = ["ctr", "-a", address, "content", "fetch", "--plain-http", self._artifact.pushed.reference]
            sample = processes.run(command, place / "words")
            _check_size(place / "root/io.containerd.content.v1.content/blobs/sha256", self._artifact)
            return dataclasses.replace(sample, daemon_cpu=processes.cpu_seconds(pid) - before)


@contextmanager
def _containerd(place: Path) -> Iterator[tuple[str, int]]:
    """A containerd with nothing but its content store; its socket's address and its pid."""
    address = place / "c.sock"
    config = place / "config.toml"
    disabled = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]
    config.write_text(
        f'version = 2\nroot = "{place}/root"\nstate = "{place}/state"\ndisabled_plugins = {disabled!r}\n'
        f'[grpc]\naddress = "{address}"\n'
    )
    with (place / "containerd.log").open("wb") as words:
        process = processes.start(["containerd", "--config", str(config)], words)
        try:
            deadline = time.monotonic() + CONTAINERD_SECONDS
            while not address.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    text = (place / "containerd.log").read_text(errors="replace")
                    raise FailedError(f"containerd did not start:\n{text[-2000:]}")
                time.sleep(0.01)
            processes.run(["ctr", "-a", str(address), "version"], place / "version")  # it answers
            yield str(address), process.pid
        finally:
            processes.stop(process)


@contextmanager
def _fresh(directory: Path) -> Iterator[Path]:
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _check_size(directory: Path, artifact: Artifact) -> None:
    """Whoever stores must have stored it all."""
    stored = sum(path.stat().st_size for path in directory.iterdir() if path.is_file() and not path.is_symlink())
    if stored < artifact.pushed.size:
        raise FailedError(f"{directory} has {stored} bytes of {artifact.pushed.size}; {os.listdir(directory)}")
