"""What the cases that compare pulls share: our own client, a machine that is alike before each run, and the table."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from bench import memory, node, peers, processes
from bench.peers import Artifact
from bench.rounds import Contender, Sample, Series

MIB = 1 << 20
COLUMNS = ("client", "median s", "min s", "GB/s", "time / modelmount", "CPU s", "daemon", "server", "RSS MiB")


class Modelmount:
    """A driver with an empty store: the time of NodePublishVolume, from resolving the tag to the mount."""

    name = "modelmount"

    def __init__(self, artifact: Artifact, directory: Path) -> None:
        self._artifact, self._directory = artifact, directory

    def run(self) -> Sample:
        """One publish. The CPU is that of the driver, which was started before; its peak memory too."""
        pod = node.pod("bench", self._artifact.pushed.reference)
        with node.Node(self._directory, self._artifact.registry) as cold:
            before = processes.cpu_seconds(cold.driver.pid)
            wall = cold.publish(pod)
            cpu = processes.cpu_seconds(cold.driver.pid) - before
            shown = sum(path.stat().st_size for path in cold.target(pod).iterdir())
            if shown != self._artifact.pushed.size:
                raise processes.FailedError(f"modelmount shows {shown} bytes of {self._artifact.pushed.size}")
            return Sample(wall, cpu=cpu, rss=cold.driver.memory("VmHWM"))


class Prepared:
    """A contender with the machine made alike before it, and the registry's CPU added to its sample."""

    def __init__(self, inner: Contender, registry: peers.Server, touched: int) -> None:
        self._inner, self._registry, self._touched = inner, registry, touched

    @property
    def name(self) -> str:
        """The inner one's."""
        return self._inner.name

    def run(self) -> Sample:
        """The inner one's sample, with the server's CPU."""
        os.sync()
        memory.touch(self._touched)
        before = processes.cpu_seconds(self._registry.pid)
        sample = self._inner.run()
        return dataclasses.replace(sample, server_cpu=processes.cpu_seconds(self._registry.pid) - before)


def described(each: Series, ours: Series) -> dict[str, object]:
    """A client's figures as plain JSON."""
    return {
        "median_s": each.wall,
        "min_s": each.least,
        "ratio_to_modelmount": each.ratio(ours),
        "median_cpu_s": each.median(lambda s: s.cpu),
        "median_daemon_cpu_s": each.median(lambda s: s.daemon_cpu),
        "median_registry_cpu_s": each.median(lambda s: s.server_cpu),
        "max_rss_bytes": max(s.rss for s in each.samples),
        "samples": [dataclasses.asdict(s) for s in each.samples],
    }


def row(each: Series, ours: Series, size: int) -> tuple[str, ...]:
    """A client's row below `COLUMNS`."""
    return (
        each.name,
        f"{each.wall:.2f}",
        f"{each.least:.2f}",
        f"{size / each.wall / 1e9:.2f}",
        f"{each.ratio(ours):.2f}",
        f"{each.median(lambda s: s.cpu):.2f}",
        f"{each.median(lambda s: s.daemon_cpu):.2f}",
        f"{each.median(lambda s: s.server_cpu):.2f}",
        f"{max(s.rss for s in each.samples) / MIB:.0f}",
    )
