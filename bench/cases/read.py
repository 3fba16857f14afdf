"""Reading a mounted model against the file itself, both warm: the mount must cost nothing.

`file` and `mount` are the same inode, once through the store's path and once through the pod's mount. `copy` is a
plain copy made by `cp`: how the pages of a file lie in memory depends on the program that wrote it. `read` reads 1 MiB
at a time into one buffer, `mmap` maps the file anew and touches one byte of each page.
"""

from __future__ import annotations

import mmap
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import model, node
from bench.report import Figure, Result, Table
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

    def run(self) -> Sample:
        started = time.perf_counter()
        for _ in range(PASSES):
            self.how(self.path)
        return Sample((time.perf_counter() - started) / PASSES)


def run(setting: Setting) -> Result:
    """Read one file of half the size that a pull moves."""
    size = setting.size // 2
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(setting.directory / "read-registry"))
        source = model.make(setting.directory / "read-model", [size])
        pushed = model.publish(registry, source, "bench/read")
        shutil.rmtree(source)
        reading = stack.enter_context(node.Node(setting.directory / "r", registry))
        pod = node.pod("bench", pushed.reference)
        reading.publish(pod)
        mounted = next(reading.target(pod).glob("*.safetensors"))
        stored = next(p for p in (reading.driver.store / "blobs/sha256").iterdir() if p.stat().st_size == size)
        if not os.path.samefile(mounted, stored):
            raise RuntimeError(f"{mounted} and {stored} are not the same file")
        copy = Path(shutil.copyfile(stored, setting.directory / "copy"))
        stack.callback(copy.unlink)
        places = {"file": stored, "mount": mounted, "copy": copy}
        series = {}
        for kind, how in (("read", _read), ("mmap", _touch)):
            readers = [_Reader(name, path, how) for name, path in places.items()]
            for reader in readers:
                reader.run()  # everything into memory
            series[kind] = interleave(readers, setting.rounds * ROUNDS_FACTOR, lambda text: None)
            setting.say(f"{kind}: {setting.rounds * ROUNDS_FACTOR} rounds done")
    return _result(size, series)


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


def _result(size: int, series: dict[str, list[Series]]) -> Result:
    rows, figures = [], []
    document: dict[str, object] = {"bytes": size, "page_bytes": PAGE_BYTES}
    for kind, (file, mounted, copy) in series.items():
        document[kind] = {
            each.name: {"median_s": each.wall, "min_s": each.least, "ratio_to_file": each.ratio(file)}
            for each in (file, mounted, copy)
        }
        rows += [
            (
                f"{kind}: {each.name}",
                f"{size / each.wall / 1e9:.2f}",
                f"{each.wall * 1000:.1f}",
                f"{each.least * 1000:.1f}",
                f"{each.ratio(file):.3f}",
            )
            for each in (file, mounted, copy)
        ]
        figures.append(
            Figure(f"warm {kind} through the mount, time against the file", mounted.ratio(file), GOAL_RATIO, "x")
        )
    table = Table(
        f"Reading {size / 1e9:.2f} GB, warm",
        ("how: what", "GB/s", "median ms", "min ms", "time / file"),
        rows,
        [
            "Ratios are taken in each round, then their median. mmap touches one byte of each page; its GB/s are of",
            "address space.",
        ],
    )
    return Result(document, [table], figures)
