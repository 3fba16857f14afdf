"""(d) A layer that is a compressed archive: from the server to files, against `tar` reading the same stream.

The weights are like bfloat16 ones: half of the bytes are random, the other half, sign and exponent, repeat themselves.
The other clients leave the archive as it is, so they do less.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from bench import artifact, memory
from bench.artifact import PIECE_BYTES, Artifact
from bench.peers import Crane, Ctr, Oras, Peer, Skopeo, Target
from bench.pulls import compare
from bench.report import Figure, Outcome
from bench.rounds import Sample
from bench.servers import Nginx
from bench.setting import Setting

GIB, MIB = 1 << 30, 1 << 20
FILES = 4
COMPRESSORS = {"gzip": ("gzip", "-1", "-c"), "zstd": ("zstd", "-3", "-q", "-c")}


class CurlTar(Peer):
    """`curl | tar -x`: nothing is verified, nothing synced."""

    name, program, verifies = "curl | tar", "tar", False

    def pull(self, place: Path) -> Sample:
        """Into a directory."""
        files = place / "files"
        files.mkdir()
        script = f'curl -fsS "$1" | {self.path} -x {_option(self.target.artifact)} -C "$2"'
        sample = self._run(place, ["sh", "-c", script, "sh", self.target.urls[0], str(files)])
        self._check(files, self.target.artifact.shown)
        return sample


class LocalTar(Peer):
    """`tar -x` of the archive where it lies on this disk, in memory: no transfer."""

    name, program, verifies = "tar of a local file", "tar", False

    def pull(self, place: Path) -> Sample:
        """Into a directory."""
        files = place / "files"
        files.mkdir()
        made = self.target.artifact
        sample = self._run(place, [self.path, "-x", _option(made), "-f", str(made.layers[0].path), "-C", str(files)])
        self._check(files, made.shown)
        return sample


def gzip(setting: Setting) -> Outcome:
    """tar+gzip."""
    return _run(setting, "d-gzip", "gzip")


def zstd(setting: Setting) -> Outcome:
    """tar+zstd."""
    return _run(setting, "d-zstd", "zstd")


def _run(setting: Setting, case: str, compression: str) -> Outcome:
    size = setting.size(GIB, 64 * MIB)
    site = setting.directory / "site"
    made = make(site, setting.directory / "making", compression, size)
    kinds = (CurlTar, LocalTar, Skopeo, Ctr, Oras, Crane)
    with memory.pinned([made.layers[0].path]), Nginx(setting.directory / "nginx", site) as server:
        target = Target(server, made, setting.directory / "p")
        title = f"a tar+{compression} layer of {made.size / MIB:.0f} MiB with {made.shown / MIB:.0f} MiB of files"
        notes = ["skopeo, ctr, oras and crane store the archive as it is; GB/s are of the archive."]
        outcome = compare(case, title, target, kinds, setting, notes=notes)
    series = {row.tool: row.series for row in outcome.rows if row.series is not None}
    tar = series[CurlTar.name].ratio(series["modelmount"])
    figures = [
        Figure(f"{case}: speed over curl | tar", tar, 1.0, "x", at_least=True),
        *(figure for figure in outcome.figures if "memory" in figure.name),
    ]
    return Outcome(outcome.title, outcome.size, outcome.rows, figures, outcome.notes)


def _option(made: Artifact) -> str:
    return "--zstd" if made.layers[0].media_type.endswith("zstd") else "-z"


def make(site: Path, directory: Path, compression: str, size: int) -> Artifact:
    """A model of `size` bytes in one compressed archive, laid out below `site`; `directory` is gone again."""
    directory.mkdir()
    plain, packed = directory / "archive.tar", directory / "archive"
    with tarfile.open(plain, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(FILES):
            member = directory / "member"
            with member.open("wb") as file:
                for piece in _weights(number, size // FILES):
                    file.write(piece)
            archive.add(member, f"model-{number:05d}.safetensors")
    with packed.open("wb") as file:
        subprocess.run([*COMPRESSORS[compression], str(plain)], stdout=file, check=True)
    layer = artifact.store(site, "weights", _pieces(packed), f"application/vnd.cncf.model.weight.v1.tar+{compression}")
    shutil.rmtree(directory)
    return artifact.compose(site, [layer], size)


def _weights(seed: int, size: int) -> Iterator[bytes]:
    """bfloat16 numbers near zero, little-endian: the high bytes of a normal distribution."""
    source = random.Random(seed)
    exponents = bytes(int(source.choice((0x3C, 0xBC)) - min(8, source.expovariate(0.6))) for _ in range(256))
    for piece in artifact.random_pieces(seed, size):
        numbers = bytearray(piece)
        numbers[1::2] = numbers[1::2].translate(exponents)
        yield bytes(numbers)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
