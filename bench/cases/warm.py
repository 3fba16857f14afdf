"""Warm publish: the model is on the node, a pod asks for it. NodePublishVolume as its caller sees it: a program in Go,
as the kubelet is, over one connection that stays; the kubelet also makes a connection for each call, which is not in
the times.

Two drivers take turns, forty pods each: one proves each pod's access with a manifest request to the registry on
loopback (`auth.verification = "always"`), one does not (`never`). Each publish is for a new pod, followed by a call
that does nothing. What a publish can't do without is measured in turn with them: that call, a durable small file as the
lease is one, and the registry's answer to a bare request.

The pods stay until the last has come, then they go in turn. Were each to go at once, the publishes would be slower the
longer it lasts: ext4 without a journal walks past every inode freed in the last one to six minutes whenever it needs a
new one (fs/ext4/ialloc.c, recently_deleted), which took half a publish's time after a thousand. No node sees pods come
and go two hundred times a second, and with a journal ext4 doesn't do it.
"""

from __future__ import annotations

import http.client
import os
import time
from contextlib import ExitStack, closing
from pathlib import Path

from bench import artifact, node, programs
from bench.report import Figure, Outcome, Row
from bench.rounds import Sample, Series, percentile
from bench.servers import DockerRegistry
from bench.setting import Setting
from modelmount.registry.client import ACCEPT
from tests.fakes.registry import Registry

PODS = 40
"""Of each driver in each round: together as many as a large node holds."""
FILES = 12
FILE_BYTES = 64 << 10
LEASE_BYTES = 700
"""About what a lease takes."""
GOALS_MS = {"always": 5.0, "never": 2.0}


def run(setting: Setting) -> Outcome:
    """Publishes and unpublishes of each driver."""
    rounds = setting.size(5, 1)
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(setting.directory / "registry"))
        made = artifact.raw(setting.directory / "site", [FILE_BYTES] * FILES)
        artifact.publish(registry, made)
        reference = f"{registry.host}/{artifact.REPOSITORY}:{artifact.TAG}"
        nodes = {
            mode: stack.enter_context(
                node.Node(setting.directory / f"w{mode[0]}", registry, {"auth": {"verification": mode}})
            )
            for mode in ("always", "never")
        }
        for each in nodes.values():
            cold = node.pod("cold", reference)
            each.publish(cold)
            each.unpublish(cold)
        publishes = {mode: Series(f"publish, {mode}", programs.own_version()) for mode in nodes}
        unpublishes = {mode: Series(f"unpublish, {mode}", programs.own_version()) for mode in nodes}
        file, call, head = (
            Series("one durable small file"),
            Series("an empty call"),
            Series("a bare HEAD of the manifest"),
        )
        manifest = f"/v2/{artifact.REPOSITORY}/manifests/{artifact.TAG}"
        bare = stack.enter_context(closing(http.client.HTTPConnection(registry.host)))
        pods = [[node.pod(f"bench-{number}-{each}", reference) for each in range(PODS)] for number in range(rounds)]
        registry.forget()
        for number in range(rounds):
            for mode in list(nodes) if number % 2 == 0 else reversed(list(nodes)):
                times = nodes[mode].come(pods[number])
                for every, series in enumerate((publishes[mode], call)):
                    series.samples.extend(Sample(seconds) for seconds in times[every::2])
            file.samples.extend(_durable_write(setting.directory, f"floor-{number}-{each}") for each in range(PODS))
            head.samples.extend(_head(bare, manifest) for _ in range(PODS))
        for number in range(rounds):
            for mode in list(nodes) if number % 2 == 0 else reversed(list(nodes)):
                unpublishes[mode].samples.extend(map(Sample, nodes[mode].go(pods[number])))
        requests = len(registry.requests()) - rounds * PODS
        blobs = DockerRegistry(registry).served()
    measured = [*publishes.values(), *unpublishes.values(), call, file, head]
    without = (call.wall + file.wall) * 1000
    notes = [
        f"{rounds} times {PODS} of each, in turn.",
        f"The registry's log has {requests} requests of theirs, {blobs} bytes of blobs.",
        "Milliseconds, p50 / p99 / least:",
        *(f"  {each.name}: {_milliseconds(each)}" for each in measured),
        f"What a publish can't do without: {without:.2f} ms never, {without + head.wall * 1000:.2f} ms always.",
    ]
    figures = [
        Figure(f"warm: publish, access proved {mode}, median", each.wall * 1000, GOALS_MS[mode], "ms")
        for mode, each in publishes.items()
    ]
    rows = [Row("warm", each.name, series=each) for each in measured]
    return Outcome("warm: a publish of a model that is here", 0, rows, figures, notes)


def _milliseconds(series: Series) -> str:
    walls = [sample.wall * 1000 for sample in series.samples]
    return f"{percentile(walls, 0.5):.2f} / {percentile(walls, 0.99):.2f} / {min(walls):.2f}"


def _head(connection: http.client.HTTPConnection, path: str) -> Sample:
    """The same request as a publish's, over a connection that stays, by the standard library alone."""
    started = time.perf_counter()
    connection.request("HEAD", path, headers={"Accept": ACCEPT})
    connection.getresponse().read()
    return Sample(time.perf_counter() - started)


def _durable_write(directory: Path, name: str) -> Sample:
    """One new small file, as POSIX wants it made durable: write, fsync, rename, fsync of the directory."""
    temporary, final = directory / f".{name}.new", directory / name
    started = time.perf_counter()
    with temporary.open("wb") as file:
        file.write(bytes(LEASE_BYTES))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(final)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return Sample(time.perf_counter() - started)
