"""Cold pull from a server that gives each connection 50 MB/s, as registries and object stores do: what a client makes
of many connections.
"""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import ExitStack

from bench import memory, model, peers
from bench.paced import Paced
from bench.peers import Artifact
from bench.pulls import COLUMNS, Modelmount, Prepared, described, row
from bench.report import Figure, Result, Table
from bench.rounds import Contender, interleave
from bench.setting import Setting
from tests.fakes.registry import Registry

BYTES_PER_SECOND = 50_000_000
GOAL = 8.0
ROUNDS = 3
"""A single stream takes 20 s for a GiB, whatever the machine does: three rounds show it."""


def run(setting: Setting) -> Result:
    """Pull half of `setting.size` in one blob, by each client that asks for a blob with one request, and by ours."""
    size = setting.size // 2
    rounds = min(ROUNDS, setting.rounds)
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(setting.directory / "capped-registry"))
        source = model.make(setting.directory / "capped-model", [size])
        pushed = model.publish(registry, source, "bench/capped")
        shutil.rmtree(source)
        stack.enter_context(memory.pinned([registry.blob_file(digest) for digest in pushed.layers]))
        server = stack.enter_context(Paced(registry, pushed, BYTES_PER_SECOND))
        pushed = dataclasses.replace(pushed, host=server.host)
        artifact = Artifact(server, pushed)
        place = setting.directory / "c"
        contenders: list[Contender] = [
            Modelmount(artifact, place),
            peers.Curl(artifact, place),
            peers.CurlSha256(artifact, place),
            peers.Skopeo(artifact, place),
        ]
        prepared = [Prepared(each, server, size) for each in contenders]
        series = interleave(prepared, rounds, setting.say)
    ours = series[0]
    document = {
        "bytes": pushed.size,
        "rounds": rounds,
        "clients": {each.name: described(each, ours) for each in series},
    }
    table = Table(
        f"Cold pull of {size / 1e9:.2f} GB at {BYTES_PER_SECOND // 10**6} MB/s a connection, {rounds} rounds",
        COLUMNS,
        [row(each, ours, pushed.size) for each in series],
        ["The kernel paces each of the server's sockets; the others use one connection for a blob."],
    )
    best = min(each.ratio(ours) for each in series[1:])
    return Result(document, [table], [Figure("speed over the best single stream", best, GOAL, "x", at_least=True)])
