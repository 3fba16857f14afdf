"""Warm publish: the model is on the node, a pod asks for it. NodePublishVolume as its caller sees it, over one
connection that stays, Python's gRPC client included; the kubelet also makes a connection for each call, which is not
in the times.

Two drivers run side by side and take turns at each publish: one proves the pod's access with a manifest request to the
registry on loopback (`auth.verification = "always"`), one does not (`never`). Each publish is for a new pod. Both
write a durable lease; what that alone costs here is measured beside them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import model, node
from bench.report import Figure, Result, Table
from bench.rounds import percentile
from bench.setting import Setting
from tests.fakes.registry import Registry

FILES = 12
FILE_BYTES = 64 << 10
LEASE_BYTES = 700
"""About what a lease takes."""
GOALS_MS = {"always": 5.0, "never": 2.0}


def run(setting: Setting) -> Result:
    """Measure `setting.publishes` publishes and unpublishes of each driver."""
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(setting.directory / "warm-registry"))
        source = model.make(setting.directory / "warm-model", [FILE_BYTES] * FILES)
        pushed = model.publish(registry, source, "bench/warm")
        nodes = {
            mode: stack.enter_context(
                node.Node(setting.directory / f"w{mode[0]}", registry, {"auth": {"verification": mode}})
            )
            for mode in ("always", "never")
        }
        for each in nodes.values():
            cold = node.pod("cold", pushed.reference)
            each.publish(cold)
            each.unpublish(cold)
        publishes: dict[str, list[float]] = {mode: [] for mode in nodes}
        unpublishes: dict[str, list[float]] = {mode: [] for mode in nodes}
        floor: list[float] = []
        registry.forget()
        for number in range(setting.publishes):
            pod = node.pod(f"bench-{number}", pushed.reference)
            for mode in list(nodes) if number % 2 == 0 else reversed(list(nodes)):
                publishes[mode].append(nodes[mode].publish(pod) * 1000)
                unpublishes[mode].append(nodes[mode].unpublish(pod) * 1000)
            floor.append(_durable_write(setting.directory) * 1000)
        requests = len(registry.requests())
        blobs = registry.blob_gets().total()
    return _result(setting, publishes, unpublishes, floor, requests, blobs)


def _durable_write(directory: Path) -> float:
    """Seconds for one small file, written as a lease must be: write, fsync, rename, fsync of the directory."""
    temporary, final = directory / ".floor.new", directory / "floor"
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
    return time.perf_counter() - started


def _result(
    setting: Setting,
    publishes: dict[str, list[float]],
    unpublishes: dict[str, list[float]],
    floor: list[float],
    requests: int,
    blobs: int,
) -> Result:
    names = {"always": "publish, access proved (always)", "never": "publish, not proved (never)"}
    series = [(names[mode], publishes[mode]) for mode in publishes]
    series += [(f"unpublish ({mode})", unpublishes[mode]) for mode in unpublishes]
    series.append(("one durable small file, as a floor", floor))
    document: dict[str, Any] = {
        "publishes": setting.publishes,
        "registry_requests": requests,
        "blob_requests": blobs,
        "milliseconds": {name: _summary(values) for name, values in series},
    }
    table = Table(
        f"Warm publish, {setting.publishes} times each, ms",
        ("call", "p50", "p99", "min", "mean"),
        [(name, *(f"{value:.2f}" for value in _summary(values).values())) for name, values in series],
        [
            f"The registry's log has {requests} requests for {setting.publishes} publishes that prove access and",
            f"{setting.publishes} that don't, {blobs} of them for blobs.",
        ],
    )
    figures = [
        Figure(f"warm {names[mode]}, p50", percentile(values, 0.5), GOALS_MS[mode], "ms")
        for mode, values in publishes.items()
    ]
    return Result(document, [table], figures)


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "p50": percentile(values, 0.5),
        "p99": percentile(values, 0.99),
        "min": min(values),
        "mean": statistics.fmean(values),
    }
