"""Cold pull of one artifact from a real registry on this machine, against the other clients.

Fair or not: modelmount verifies each blob, makes everything durable (fsync) and mounts it; ctr verifies and syncs;
skopeo verifies; `curl | openssl` verifies and stores nothing; `curl -o` checks nothing and is the bound of the
transport. Everybody writes to the same file system and reads blobs that the registry has in memory. Client, registry
and daemons share the machine's processors. Before each run memory is touched and the last run's files are synced away.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from bench import memory, model, node, peers, processes
from bench.peers import Artifact
from bench.report import Figure, Result, Table
from bench.rounds import Contender, Sample, Series, interleave
from bench.setting import Setting
from tests.fakes.registry import Registry

SHARDS = 2
GOAL_RSS_MIB = 100.0
MIB = 1 << 20


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


class _Prepared:
    """A contender with the machine made alike before it, and the registry's CPU added to its sample."""

    def __init__(self, inner: Contender, registry: Registry, touched: int) -> None:
        self._inner, self._registry, self._touched = inner, registry, touched

    @property
    def name(self) -> str:
        return self._inner.name

    def run(self) -> Sample:
        os.sync()
        memory.touch(self._touched)
        before = processes.cpu_seconds(self._registry.pid)
        sample = self._inner.run()
        return dataclasses.replace(sample, server_cpu=processes.cpu_seconds(self._registry.pid) - before)


def run(setting: Setting) -> Result:
    """Pull `setting.size` bytes in two blobs and two small ones, `setting.rounds` times by each client."""
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(setting.directory / "pull-registry"))
        source = model.make(setting.directory / "pull-model", [setting.size // SHARDS] * SHARDS)
        artifact = Artifact(registry, model.publish(registry, source, "bench/pull"))
        shutil.rmtree(source)
        stack.enter_context(memory.pinned([registry.blob_file(digest) for digest in artifact.pushed.layers]))
        place = setting.directory / "p"
        contenders: list[Contender] = [
            Modelmount(artifact, place),
            peers.Curl(artifact, place),
            peers.CurlSha256(artifact, place),
            peers.Skopeo(artifact, place),
            peers.Ctr(artifact, place),
        ]
        prepared = [_Prepared(each, registry, 2 * setting.size) for each in contenders]
        registry.forget()
        series = interleave(prepared, setting.rounds, setting.say)
    return _result(artifact.pushed.size, setting.rounds, series)


def _result(size: int, rounds: int, series: list[Series]) -> Result:
    ours = series[0]
    document = {
        "bytes": size,
        "rounds": rounds,
        "clients": {each.name: _described(each, ours) for each in series},
    }
    table = Table(
        f"Cold pull of {size / 1e9:.2f} GB over plain http, {rounds} rounds",
        ("client", "median s", "min s", "GB/s", "time / modelmount", "CPU s", "daemon", "registry", "RSS MiB"),
        [_row(each, ours, size) for each in series],
        [
            "Ratios are taken in each round, then their median. CPU is user and system time of the client.",
            "Programs built with Go before 1.21 hash sha256 without the processor's SHA instructions: newer builds of",
            "skopeo and ctr will be closer. RSS of modelmount is the driver's peak (VmHWM).",
        ],
    )
    peak = max(sample.rss for sample in ours.samples) / MIB
    return Result(document, [table], [Figure("driver's peak memory during the pull", peak, GOAL_RSS_MIB, "MiB")])


def _described(each: Series, ours: Series) -> dict[str, object]:
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


def _row(each: Series, ours: Series, size: int) -> tuple[str, ...]:
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
