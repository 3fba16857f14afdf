"""The other clients, each with one pull of one artifact into a directory that is new each time."""

from __future__ import annotations

import dataclasses
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench import artifact, processes, programs
from bench.artifact import Artifact
from bench.processes import FailedError
from bench.rounds import Sample
from bench.servers import Server

CONTAINERD_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """What is pulled, from where, and to which directory, which doesn't exist outside of a run. What was pulled is
    removed after each run, or put `aside`, a directory that is there, for the caller to remove: ext4 without a journal
    makes files more slowly for minutes after many were deleted, and whoever's turn is next would pay for it.
    """

    server: Server
    artifact: Artifact
    place: Path
    aside: Path | None = None

    @property
    def reference(self) -> str:
        """By tag, as people name it."""
        return f"{self.server.host}/{artifact.REPOSITORY}:{artifact.TAG}"

    @property
    def urls(self) -> list[str]:
        """The layers' own URLs."""
        base = f"{self.server.url}/v2/{artifact.REPOSITORY}/blobs"
        return [f"{base}/{layer.digest}" for layer in self.artifact.layers]

    @property
    def environment(self) -> dict[str, str]:
        """How programs without an option for it are told which CA to trust (Go, requests)."""
        if self.server.tls is None:
            return {}
        return dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(self.server.tls.ca_file))

    def discard(self, directory: Path) -> None:
        """Have it out of the way after a run."""
        if self.aside is None:
            shutil.rmtree(directory)
        else:
            directory.rename(self.aside / str(sum(1 for _ in self.aside.iterdir())))

    def option(self, plain: str, name: str = "") -> list[str]:
        """The option `plain` for plain http, or `name` with the CA's file."""
        if self.server.tls is None:
            return [plain] if plain else []
        return [name, str(self.server.tls.ca_file)] if name else []


class Peer(ABC):
    """A client as `interleave` runs it. Making one raises programs.MissingError where its program can't be had."""

    name: ClassVar[str]
    program: ClassVar[str]
    verifies: ClassVar[bool] = True
    """Whether it checks each blob against its digest."""
    durable: ClassVar[bool] = False
    """Whether it syncs what it wrote to the disk before it says that it is done (seen with strace)."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.path = self._find()
        self.version = self._version()

    def run(self) -> Sample:
        """One pull; raises FailedError when it left less than the whole."""
        self.target.place.mkdir(parents=True)
        try:
            return self.pull(self.target.place)
        finally:
            self.target.discard(self.target.place)

    @abstractmethod
    def pull(self, place: Path) -> Sample:
        """Into a fresh directory."""

    def _find(self) -> str:
        return programs.find(self.program)

    def _version(self) -> str:
        return programs.version(self.program)

    def _run(self, place: Path, argv: Sequence[str]) -> Sample:
        return processes.run(argv, place / "words", self.target.environment)

    def _check(self, directory: Path, size: int | None = None) -> None:
        """Whoever stores must have stored it all: the layers, or `size` bytes."""
        wanted = self.target.artifact.size if size is None else size
        stored = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
        if stored < wanted:
            raise FailedError(f"{self.name} has {stored} bytes of {wanted}")


class Curl(Peer):
    """All layers into files by one curl over one connection. What the transport alone costs."""

    name, program, verifies = "curl", "curl", False

    def pull(self, place: Path) -> Sample:
        """Files are numbered: a URL and its file are lines of a configuration, of any number."""
        config = place.with_suffix(".curl")
        lines = (f'url = "{url}"\noutput = "{place / str(n)}"\n' for n, url in enumerate(self.target.urls))
        config.write_text("".join(lines))
        sample = self._run(place, [self.path, "-fsS", *self.target.option("", "--cacert"), "-K", str(config)])
        config.unlink()
        self._check(place)
        return sample


class CurlOpenssl(Peer):
    """Each layer through `openssl dgst`: verified, but not stored. A lower bound for a pull by shell script; Debian's
    sha256sum does not use the processor's SHA instructions.
    """

    name, program = "curl | openssl", "curl"

    def pull(self, place: Path) -> Sample:
        """Nothing is stored."""
        curl = " ".join([self.path, "-fsS", *self.target.option("", "--cacert")])
        script = f'set -e; for url in "$@"; do {curl} "$url" | openssl dgst -sha256 -r; done'
        sample = self._run(place, ["sh", "-c", script, "sh", *self.target.urls])
        found = [f"sha256:{line.split()[0]}" for line in (place / "words").read_text().splitlines()]
        if found != [layer.digest for layer in self.target.artifact.layers]:
            raise FailedError(f"curl | openssl found the digests {found}")
        return sample

    def _version(self) -> str:
        return f"{programs.version('curl')}, openssl {programs.version('openssl')}"


class Skopeo(Peer):
    """`skopeo copy` into a `dir:`."""

    name, program, durable = "skopeo", "skopeo", True

    def pull(self, place: Path) -> Sample:
        """No signature policy, as there are no signatures."""
        options = ["--quiet", *self.target.option("--src-tls-verify=false")]
        source, destination = f"docker://{self.target.reference}", f"dir:{place / 'image'}"
        command = [self.path, "--insecure-policy", "copy", *options, source, destination]
        sample = self._run(place, command)
        self._check(place / "image")
        return sample


class Ctr(Peer):
    """`ctr content fetch` into a containerd of its own, started before the clock; the daemon is in its figures."""

    name, program, durable = "ctr", "ctr", True

    def pull(self, place: Path) -> Sample:
        """Everything that the manifest names; nothing is unpacked."""
        with _containerd(place) as (address, pid):
            before = processes.cpu_seconds(pid)
            options = self.target.option("--plain-http", "--tlscacert")
            command = [self.path, "-a", address, "content", "fetch", *options, self.target.reference]
            sample = self._run(place, command)
            self._check(place / "root/io.containerd.content.v1.content/blobs/sha256")
            cpu = sample.cpu + processes.cpu_seconds(pid) - before
            return dataclasses.replace(sample, cpu=cpu, rss=sample.rss + processes.peak_memory(pid))


class Oras(Peer):
    """`oras pull`: files under their titles."""

    name, program = "oras", "oras"

    def pull(self, place: Path) -> Sample:
        """With its own number of connections, three to five."""
        options = ["--no-tty", *self.target.option("--plain-http", "--ca-file")]
        sample = self._run(place, [self.path, "pull", *options, "-o", str(place / "files"), self.target.reference])
        self._check(place / "files")
        return sample


class Crane(Peer):
    """`crane pull` as an OCI layout."""

    name, program = "crane", "crane"

    def pull(self, place: Path) -> Sample:
        """The blobs under their digests."""
        options = ["--format=oci", *self.target.option("--insecure")]
        sample = self._run(place, [self.path, "pull", *options, self.target.reference, str(place / "layout")])
        self._check(place / "layout")
        return sample


class Aria2(Peer):
    """aria2c with 8 connections for a file, told each file's digest."""

    name, program = "aria2c", "aria2c"

    def pull(self, place: Path) -> Sample:
        """Space is not allocated beforehand, which would only cost it time."""
        listed = place.with_suffix(".aria2")
        lines = (
            f"{url}\n out={n}\n checksum=sha-256={layer.digest.removeprefix('sha256:')}\n"
            for n, (url, layer) in enumerate(zip(self.target.urls, self.target.artifact.layers, strict=True))
        )
        listed.write_text("".join(lines))
        options = ["-q", "-x8", "-s8", "-k1M", "--file-allocation=none", *self.target.option("")]
        if self.target.server.tls is not None:
            options.append(f"--ca-certificate={self.target.server.tls.ca_file}")
        sample = self._run(place, [self.path, *options, f"--dir={place}", f"--input-file={listed}"])
        listed.unlink()
        self._check(place)
        return sample


class OrasPy(Peer):
    """The Python client `oras`, from an environment of its own. It checks no digest of a layer."""

    name, program, verifies = "oras-py", "python", False

    def pull(self, place: Path) -> Sample:
        """As its documentation shows it."""
        insecure = self.target.server.tls is None
        script = (
            "import sys, oras.client; "
            f"oras.client.OrasClient(insecure={insecure}).pull(target=sys.argv[1], outdir=sys.argv[2])"
        )
        sample = self._run(place, [self.path, "-c", script, self.target.reference, str(place / "files")])
        self._check(place / "files")
        return sample

    def _find(self) -> str:
        return str(programs.ORAS_PY)

    def _version(self) -> str:
        return programs.oras_py_version()


VERIFYING: Sequence[type[Peer]] = (CurlOpenssl, Skopeo, Ctr, Oras, Crane, Aria2)
ALL: Sequence[type[Peer]] = (Curl, *VERIFYING, OrasPy)
UNAVAILABLE: Mapping[str, str] = {
    "modctl": "no build that could be pinned: the Go module proxy does not serve github.com/modelpack/modctl"
}
"""Clients that belong here and were not to be had when this was written."""


def present(kinds: Sequence[type[Peer]], target: Target) -> tuple[list[Peer], Mapping[str, str]]:
    """Those that can be had here, and the reasons why others can't."""
    found: list[Peer] = []
    reasons = dict(UNAVAILABLE)
    for kind in kinds:
        try:
            found.append(kind(target))
        except programs.MissingError as e:
            reasons[kind.name] = str(e)
    return found, reasons


@contextmanager
def _containerd(place: Path) -> Iterator[tuple[str, int]]:
    """A containerd with nothing but its content store; its socket's address and its pid."""
    address = place / "c.sock"
    config = place / "config.toml"
    disabled = [
        "cri.v1.images",
        "cri.v1.runtime",
        "grpc.v1.cri",
        "internal.v1.opt",
        "internal.v1.tracing",
        "nri.v1.nri",
    ]
    config.write_text(
        f'version = 2\nroot = "{place}/root"\nstate = "{place}/state"\n'
        f"disabled_plugins = {[f'io.containerd.{name}' for name in disabled]!r}\n"
        f'[grpc]\naddress = "{address}"\n'
    )
    program = programs.find("containerd")
    with (place / "containerd.log").open("wb") as words:
        process = processes.start([program, "--config", str(config)], words)
        try:
            deadline = time.monotonic() + CONTAINERD_SECONDS
            while not address.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    text = (place / "containerd.log").read_text(errors="replace")
                    raise FailedError(f"containerd did not start:\n{text[-2000:]}")
                time.sleep(0.01)
            processes.run([programs.find("ctr"), "-a", str(address), "version"], place / "version")  # it answers
            yield str(address), process.pid
        finally:
            processes.stop(process)
