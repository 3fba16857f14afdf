"""(h) Resume after the driver was killed, and after the power was cut, half-way: the time of the second publish, and
the bytes that the server sent again.

The server paces each connection, so that half-way is a moment that can be met and a dead client's buffers are small.
Bytes again are all that the server's log has, minus the blob: what was in flight at the end is among them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from bench import artifact, memory, node, processes, programs
from bench.paced import Paced
from bench.peers import Target
from bench.processes import FailedError
from bench.pulls import RSS_MIB, SPARE_BYTES, peak_mib, touched
from bench.report import Figure, Outcome, Row
from bench.rounds import Contender, Sample, interleave
from bench.setting import Setting
from tests.unit.content import powercut

GIB, MIB = 1 << 30, 1 << 20
LOOK_SECONDS = 0.005
BYTES_PER_SECOND = 20_000_000
"""Slow enough that a client keeps up with all of its connections: nothing waits in its own kernel."""
KILLED_MIB, CUT_MIB = 1.0, 64.0
"""Promised: per connection after a kill, in all after a power cut."""


class Interrupted:
    """A publish that ends half-way, and a second one that is measured. `connections` are those that were cut."""

    def __init__(self, target: Target, server: Paced) -> None:
        self.target, self._server = target, server
        self.version = programs.own_version()
        self.connections: list[int] = []

    name = "modelmount, killed"

    def run(self) -> Sample:
        """The second publish's time, CPU and memory."""
        os.sync()
        memory.touch(touched(self.target.artifact.size))
        self._server.answers()
        with self._place() as place, node.Node(place, self._server) as broken:
            pod = node.pod("bench", self.target.reference)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                first = pool.submit(broken.publish, pod)
                while _allocated(broken.driver.store) < self.target.artifact.size // 2:
                    if first.done():
                        raise FailedError(f"the pull ended before it was half-way: {first.exception()}")
                    time.sleep(LOOK_SECONDS)
                self._end(broken)
                first.exception()
            before = self._server.answers()
            self.connections.append(sum(answer.sent < answer.asked for answer in before))
            broken.start_again()
            started = processes.cpu_seconds(broken.driver.pid)
            wall = broken.publish(pod)
            cpu = processes.cpu_seconds(broken.driver.pid) - started
            rss = broken.driver.memory("VmHWM")
            served = sum(answer.sent for answer in (*before, *self._server.answers()))
            again = served - self.target.artifact.size
            return Sample(wall, cpu=cpu, rss=rss, served=served, again=again)

    @contextlib.contextmanager
    def _place(self) -> Iterator[Path]:
        yield self.target.place

    def _end(self, broken: node.Node) -> None:
        broken.driver.kill()


class CutOff(Interrupted):
    """The same on a disk of its own, whose power is cut."""

    name = "modelmount, power cut"

    @contextlib.contextmanager
    def _place(self) -> Iterator[Path]:
        with powercut.powered(self.target.place.parent, 2 * self.target.artifact.size + SPARE_BYTES) as self._disk:
            with self._disk.image.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, self._disk.image.stat().st_size)
            yield self._disk.path / "n"
        self._disk.path.rmdir()
        self._disk.image.unlink()

    def _end(self, broken: node.Node) -> None:
        broken.driver.kill()  # first, for its log is read at its end
        self._disk.cut(powercut.NOTHING)
        self._disk.return_power()


def run(setting: Setting) -> Outcome:
    """1 GiB."""
    size = setting.size(GIB, 128 * MIB)
    site = setting.directory / "site"
    made = artifact.raw(site, [size])
    paced = Paced(setting.directory / "paced", site, BYTES_PER_SECOND)
    with memory.pinned([made.layers[0].path]), paced as server:
        target = Target(server, made, setting.directory / "p")
        contenders = [Interrupted(target, server), CutOff(target, server)]
        shown: list[Contender] = [*contenders]
        series = interleave(shown, setting.rounds, setting.say)
    killed, cut = series
    worst = max(
        sample.again / max(1, count) for sample, count in zip(killed.samples, contenders[0].connections, strict=True)
    )
    figures = [
        Figure("h: bytes again for a connection that was killed", worst / MIB, KILLED_MIB, "MiB"),
        Figure("h: bytes again after a power cut", max(s.again for s in cut.samples) / MIB, CUT_MIB, "MiB"),
        *(Figure(f"h: peak memory, {each.name}", peak_mib(each), RSS_MIB, "MiB") for each in series),
    ]
    notes = [
        f"Connections at the end, by round: killed {contenders[0].connections}, power cut {contenders[1].connections}.",
        "Bytes again, MiB: "
        + "; ".join(f"{each.name} {[round(s.again / MIB, 1) for s in each.samples]}" for each in series),
    ]
    rows = [Row("h", each.name, series=each, verifies=True, durable=True) for each in series]
    title = f"h: the second half of {size / MIB:.0f} MiB at {BYTES_PER_SECOND // 10**6} MB/s a connection"
    return Outcome(title, size // 2, rows, figures, notes)


def _allocated(directory: Path) -> int:
    """Bytes of disk that the files below a directory have, or will have once written back."""
    found = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_blocks * 512
    return found
