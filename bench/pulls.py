"""What the cases that compare pulls share: our own client, a machine that is alike before each run, and the rows."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from bench import memory, node, peers, processes, programs
from bench.peers import Peer, Target
from bench.report import Figure, Outcome, Row
from bench.rounds import Contender, OutError, Sample, Series, interleave
from bench.setting import Setting

MIB = 1 << 20
SPARE_BYTES = 512 << 20
REASON_CHARACTERS = 300
RSS_MIB = 150.0
"""Promised for every pull, of whatever size."""


def touched(size: int) -> int:
    """How much memory to touch before a pull of `size` bytes."""
    return size + min(size, SPARE_BYTES)


class Modelmount:
    """A driver with an empty store: the time of NodePublishVolume, from resolving the tag to the mount. The CPU and the
    peak memory are those of the driver, which was started before.
    """

    name = "modelmount"
    verifies = durable = True

    def __init__(self, target: Target, settings: Mapping[str, Any] | None = None) -> None:
        self.target, self._settings = target, settings
        self.version = programs.own_version()

    def run(self) -> Sample:
        """One publish."""
        pod = node.pod("bench", self.target.reference)
        with node.Node(self.target.place, self.target.server, self._settings, self.target.discard) as cold:
            before = processes.cpu_seconds(cold.driver.pid)
            wall = cold.publish(pod)
            cpu = processes.cpu_seconds(cold.driver.pid) - before
            shown = sum(path.stat().st_size for path in cold.target(pod).rglob("*") if path.is_file())
            if shown != self.target.artifact.shown:
                raise processes.FailedError(f"modelmount shows {shown} bytes of {self.target.artifact.shown}")
            return Sample(wall, cpu=cpu, rss=cold.driver.memory("VmHWM"))


class Prepared:
    """A contender with the machine made alike before it: what the last one wrote is gone or on the disk, and as much
    memory as it will need is there. The server's account is added to its sample. A peer that fails is out.
    """

    def __init__(self, inner: Contender, target: Target) -> None:
        self._inner, self._target = inner, target
        self.name, self.version = inner.name, inner.version

    def run(self) -> Sample:
        """The inner one's sample."""
        os.sync()
        memory.touch(touched(self._target.artifact.size))
        server = self._target.server
        server.served()
        before = server.cpu()
        try:
            sample = self._inner.run()
        except processes.FailedError as e:
            if isinstance(self._inner, Peer):
                raise OutError(str(e).strip()[-REASON_CHARACTERS:]) from e
            raise
        cpu = server.cpu() - before
        return dataclasses.replace(sample, server_cpu=cpu, served=server.served())


class Client(Contender, Protocol):
    """A contender that pulls."""

    @property
    def verifies(self) -> bool:
        """Whether it checks each blob against its digest."""

    @property
    def durable(self) -> bool:
        """Whether it syncs what it wrote to the disk before it says that it is done."""


def compare(
    case: str,
    title: str,
    target: Target,
    kinds: Sequence[type[Peer]],
    setting: Setting,
    *,
    beside: Sequence[Client] = (),
    notes: Sequence[str] = (),
) -> Outcome:
    """Ours and the peers, interleaved. Nothing is promised against who only runs `beside` them."""
    found, reasons = peers.present(kinds, target)
    contenders: list[Client] = [Modelmount(target), *found, *beside]
    series = interleave([Prepared(each, target) for each in contenders], setting.rounds, setting.say)
    rows = [
        Row(case, each.name, series=one, verifies=each.verifies, durable=each.durable)
        if not one.out
        else Row(case, each.name, reason=one.out)
        for each, one in zip(contenders, series, strict=True)
    ]
    promised = figures(case, rows[: 1 + len(found)])
    rows += [Row(case, name, reason=reason) for name, reason in reasons.items()]
    return Outcome(f"{case}: {title}", target.artifact.size, rows, promised, notes)


def figures(case: str, rows: Sequence[Row]) -> list[Figure]:
    """What is promised of every pull: against whoever verifies, and memory."""
    ours, *others = [row.series for row in rows if row.series is not None]
    verifying = {row.tool for row in rows if row.verifies} - {ours.name}
    return [*_speed(case, ours, others, verifying), Figure(f"{case}: peak memory", peak_mib(ours), RSS_MIB, "MiB")]


def peak_mib(series: Series) -> float:
    """The most memory of any run."""
    return max(sample.rss for sample in series.samples) / MIB


def _speed(case: str, ours: Series, others: Sequence[Series], verifying: set[str]) -> list[Figure]:
    checked = [other for other in others if other.name in verifying]
    if not checked:
        return []
    best = min(checked, key=lambda other: other.wall)
    frugal = min(checked, key=lambda other: other.median(lambda s: s.cpu))
    cpu = ours.median(lambda s: s.cpu) / frugal.median(lambda s: s.cpu)
    return [
        Figure(f"{case}: speed over the best that verifies ({best.name})", best.ratio(ours), 1.0, "x", at_least=True),
        Figure(f"{case}: CPU over the most frugal that verifies ({frugal.name})", cpu, 1.2, "x"),
    ]
