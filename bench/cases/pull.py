"""Cold pull of one artifact from a real registry on this machine, against the other clients.

Fair or not: modelmount verifies each blob, makes everything durable (fsync) and mounts it; ctr verifies and syncs;
skopeo verifies; `curl | openssl` verifies and stores nothing; `curl -o` checks nothing and is the bound of the
transport. Everybody writes to the same file system and reads blobs that the registry has in memory. Client, registry
and daemons share the machine's processors. Before each run memory is touched and the last run's files are synced away.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack

from bench import memory, model, peers
from bench.peers import Artifact
from bench.pulls import COLUMNS, MIB, Modelmount, Prepared, described, row
from bench.report import Figure, Result, Table
from bench.rounds import Contender, Series, interleave
from bench.setting import Setting
from tests.fakes.registry import Registry

SHARDS = 2
GOAL_RSS_MIB = 100.0


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
        prepared = [Prepared(each, registry, 2 * setting.size) for each in contenders]
        registry.forget()
        series = interleave(prepared, setting.rounds, setting.say)
    return _result(artifact.pushed.size, setting.rounds, series)


def _result(size: int, rounds: int, series: list[Series]) -> Result:
    ours = series[0]
    document = {
        "bytes": size,
        "rounds": rounds,
        "clients": {each.name: described(each, ours) for each in series},
    }
    table = Table(
        f"Cold pull of {size / 1e9:.2f} GB over plain http, {rounds} rounds",
        COLUMNS,
        [row(each, ours, size) for each in series],
        [
            "Ratios are taken in each round, then their median. CPU is user and system time of the client.",
            "Programs built with Go before 1.21 hash sha256 without the processor's SHA instructions: newer builds of",
            "skopeo and ctr will be closer. RSS of modelmount is the driver's peak (VmHWM).",
        ],
    )
    peak = max(sample.rss for sample in ours.samples) / MIB
    return Result(document, [table], [Figure("driver's peak memory during the pull", peak, GOAL_RSS_MIB, "MiB")])
