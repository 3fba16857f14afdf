"""What this machine can do at all, one thing at a time: the bounds that the other cases are held against.

A GiB each: hashed, written and synced, received without being kept, and the archives of case d unpacked to nothing.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

from bench import artifact, memory, processes
from bench.cases import archives, whole
from bench.pulls import touched
from bench.report import Outcome, Row
from bench.rounds import Sample, interleave
from bench.servers import Nginx
from bench.setting import Setting
from tests.fakes.registry import Tls

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GIB, MIB = 1 << 30, 1 << 20
PIECE_BYTES = 128 << 10
"""What the driver reads and writes at a time."""


@dataclass(frozen=True, slots=True)
class _Bound:
    name: str
    how: Callable[[], Sample]
    size: int
    version: str = ""

    def run(self) -> Sample:
        memory.touch(touched(self.size))
        return self.how()


def run(setting: Setting) -> Outcome:
    """Each of them alone, in turn."""
    size = setting.size(GIB, 64 * MIB)
    site, place = setting.directory / "site", setting.directory / "out"
    made = artifact.raw(site, [size])
    source = made.layers[0].path
    packed = {
        name: archives.make(setting.directory / name, setting.directory / "making", name, size).layers[0].path
        for name in archives.COMPRESSORS
    }
    with ExitStack() as stack:
        stack.enter_context(memory.pinned([source, *packed.values()]))
        plain = stack.enter_context(Nginx(setting.directory / "plain", site))
        tls = Tls.make(setting.directory / "ca", whole.TLS_ADDRESS)
        secure = stack.enter_context(Nginx(setting.directory / "secure", site, tls=tls, address=whole.TLS_ADDRESS))
        path = f"v2/{artifact.REPOSITORY}/blobs/{made.layers[0].digest}"

        def receive(server: Nginx, streams: int) -> Callable[[], Sample]:
            trust = f"--cacert {tls.ca_file}" if server.tls else ""
            share = size // streams
            ranges = " ".join(f"{n * share}-{(n + 1) * share - 1}" for n in range(streams))
            script = f'for r in {ranges}; do curl -fsS {trust} -r $r -o /dev/null "$1" & done; wait'
            return lambda: processes.run(
                ["sh", "-c", script, "sh", f"{server.url}/{path}"], setting.directory / "words"
            )

        def write(*more: str) -> Callable[[], Sample]:
            command = ["dd", f"if={source}", f"of={place}", f"bs={PIECE_BYTES}", *more]

            def written() -> Sample:
                try:
                    return processes.run(command, setting.directory / "words")
                finally:
                    place.unlink()

            return written

        bounds = {
            "sha256, one thread": lambda: _hash(source, 1),
            "sha256, two threads": lambda: _hash(source, 2),
            "write": write(),
            "write and fdatasync": write("conv=fdatasync"),
            "write past the page cache": write("oflag=direct", f"bs={4 * MIB}"),
            "receive, plain": receive(plain, 1),
            "receive, TLS": receive(secure, 1),
            "receive, TLS, two streams": receive(secure, 2),
            "inflate (isal)": lambda: _inflate(packed["gzip"]),
            "unpack zstd": lambda: _zstd(packed["zstd"]),
        }
        contenders = [_Bound(name, how, size) for name, how in bounds.items()]
        series = interleave(contenders, setting.rounds, setting.say)
    rows = [Row("limits", each.name, series=each) for each in series]
    notes = ["GB/s are of the GiB that is hashed, written, received or unpacked to."]
    return Outcome(f"limits: {size / MIB:.0f} MiB", size, rows, (), notes)


def _hash(path: Path, threads: int) -> Sample:
    """All of a cached file in 128 KiB pieces, as many bytes by each thread."""
    share = path.stat().st_size // threads

    def work(first: int) -> None:
        hasher, buffer = hashlib.sha256(), bytearray(PIECE_BYTES)
        with path.open("rb", buffering=0) as file:
            file.seek(first)
            for _ in range(share // PIECE_BYTES):
                file.readinto(buffer)
                hasher.update(buffer)

    workers = [threading.Thread(target=work, args=(n * share,)) for n in range(threads)]
    started, before = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Sample(time.perf_counter() - started, cpu=time.process_time() - before)


def _inflate(path: Path) -> Sample:
    stream = isal_zlib.decompressobj(16 + isal_zlib.MAX_WBITS)
    return _decompress(path, stream.decompress)


def _zstd(path: Path) -> Sample:
    return _decompress(path, zstd.ZstdDecompressor().decompress)


def _decompress(path: Path, feed: Callable[[bytes], bytes]) -> Sample:
    started, before = time.perf_counter(), time.process_time()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            feed(piece)
    return Sample(time.perf_counter() - started, cpu=time.process_time() - before)
