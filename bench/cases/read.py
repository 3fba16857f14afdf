"""Reading a mounted model against the file itself, both warm: the mount must cost nothing.

`file` and `mount` are the same inode, once through the store's path and once through the pod's mount. `copy` is a
plain copy made by `cp`: how the pages of a file lie in memory depends on the program that wrote it. `read` reads 1 MiB
at a time into one buffer, `mmap` maps the file anew and touches one byte of each page.
"""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import artifact, node
from bench.report import Figure, Outcome, Row
from bench.rounds import Sample, Series, interleave
from bench.setting import Setting
from tests.fakes.registry import Registry

PASSES = 3
"""Passes in a sample: a single warm touch of a GiB takes some milliseconds only."""
ROUNDS_FACTOR = 3
READ_BYTES = 1 << 20
PAGE_BYTES = mmap.PAGESIZE
GOAL_RATIO = 1.02


@dataclass(frozen=True, slots=True)
class _Reader:
    name: str
    path: Path
    how: Callable[[Path], None]
    version: str = ""

    def run(self) -> Sample:
        started = time.perf_counter()
        for _ in range(PASSES):
            self.how(self.path)
        return Sample((time.perf_counter() - started) / PASSES)


def run(setting: Setting) -> Outcome:
    """One file of a GiB."""
    size = setting.size(1 << 30, 128 << 20)
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(setting.directory / "registry"))
        made = artifact.raw(setting.directory / "site", [size])
        artifact.publish(registry, made)
        reading = stack.enter_context(node.Node(setting.directory / "r", registry))
        pod = node.pod("bench", f"{registry.host}/{artifact.REPOSITORY}:{artifact.TAG}")
        reading.publish(pod)
        mounted = next(reading.target(pod).glob("*.safetensors"))
        stored = next(p for p in (reading.driver.store / "blobs/sha256").iterdir() if p.stat().st_size == size)
        if not os.path.samefile(mounted, stored):
            raise RuntimeError(f"{mounted} and {stored} are not the same file")
        copy = Path(shutil.copyfile(stored, setting.directory / "copy"))
        places = {"file": stored, "mount": mounted, "copy": copy}
        series = {}
        for kind, how in (("read", _read), ("mmap", _touch)):
            readers = [_Reader(f"{kind}, {name}", path, how) for name, path in places.items()]
            for reader in readers:
                reader.run()  # everything into memory
            series[kind] = interleave(readers, setting.rounds * ROUNDS_FACTOR, lambda text: None)
    rows = [Row("read", each.name, series=each) for kind in series for each in series[kind]]
    figures = [
        Figure(f"read: warm {kind} through the mount, time against the file", _paired(mount, file), GOAL_RATIO, "x")
        for kind, (file, mount, _) in series.items()
    ]
    notes = ["mmap touches one byte of each page; its GB/s are of address space."]
    return Outcome(f"read: {size / 1e9:.2f} GB, warm", size, rows, figures, notes)


def _paired(one: Series, other: Series) -> float:
    """The median of the ratios of each round: the difference is far smaller than what rounds differ by."""
    return statistics.median(a.wall / b.wall for a, b in zip(one.samples, other.samples, strict=True))


def _read(path: Path) -> None:
    buffer = bytearray(READ_BYTES)
    fd = os.open(path, os.O_RDONLY)
    try:
        while os.readv(fd, [buffer]):
            pass
    finally:
        os.close(fd)


def _touch(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as area:
            _ = area[::PAGE_BYTES]  # a loop in C over one byte a page
    finally:
        os.close(fd)
