"""A node that is full: 500 models of 400 files each, 2,000 volumes. What a publish, a start, a sweep and the commands
cost, at a quarter, a half and all of it.

The store is filled by `tests.fakes.stock`, which calls what a pull calls once its bytes are verified; the volumes are
published by the driver itself. Two drivers take turns at each publish: one of them has nothing but one model. Neither
asks a registry (`auth.verification = "never"`): that part of a publish doesn't know how full the store is.

The sweep runs in a process of its own, with the driver's code, once what never changes has been read: as in a driver
after its first round. It takes nothing, so that no deletion is in its time.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime

from bench import node, processes, programs
from bench.node import Node
from bench.processes import FailedError
from bench.report import Figure, Outcome, Row
from bench.rounds import Sample, Series
from bench.setting import Setting
from tests.fakes import stock
from tests.fakes.registry import Tls

MIB = 1 << 20
SHARES = (0.25, 0.5, 1.0)
PUBLISHES = 200
COMMANDS = {"ls": ["ls"], "du": ["du"], "gc --dry-run": ["gc", "--dry-run", "--all"]}
GROWTH, START_SECONDS, SWEEP_SECONDS, RSS_MIB = 1.2, 3.0, 2.0, 150.0
"""Promised."""
PATIENCE_SECONDS = 120.0
_SWEEP = """
import json, sys, time
from pathlib import Path
from modelmount.cache.collector import Collector
from modelmount.config import Cache
from modelmount.content.store import Store

collector = Collector(Store(Path(sys.argv[1])), Cache)
collector.reader.read()
walls = []
for _ in range(int(sys.argv[2])):
    started = time.perf_counter()
    collector.collect(0)
    walls.append(time.perf_counter() - started)
print(json.dumps(walls))
"""


@dataclass(frozen=True, slots=True)
class _Nobody:
    """A registry that is only named."""

    host: str = stock.REGISTRY
    tls: Tls | None = None


@dataclass(slots=True)
class _Level:
    """What was measured with so many models and volumes."""

    models: int
    volumes: int
    alone: Series
    beside: Series
    figures: dict[str, Series]
    rss: int


def run(setting: Setting) -> Outcome:
    """All levels, one after the other, on one store that grows."""
    models, files = setting.size(500, 20), setting.size(400, 50)
    volumes = setting.size(2000, 80)
    settings = {"auth": {"verification": "never"}, "log_level": "info"}
    with ExitStack() as stack:
        empty = stack.enter_context(Node(setting.directory / "e", _Nobody(), settings))
        full = stack.enter_context(Node(setting.directory / "f", _Nobody(), settings))
        _fill(empty, range(1), 12, setting)
        _fill(full, range(models, models + 1), 12, setting)  # the one that is published at all levels
        full.publish(node.pod("held", str(stock.reference(models))))
        levels: list[_Level] = []
        done = published = 0
        for share in SHARES:
            _fill(full, range(done, int(models * share)), files, setting)
            done = int(models * share)
            for number in range(published, int(volumes * share)):
                full.publish(node.pod(f"held-{number}", str(stock.reference(number % done))))
            published = int(volumes * share)
            levels.append(_measure(setting, empty, full, models, done, published))
    last = levels[-1]
    rows = [
        Row("scale", f"{series.name}, {level.models} models", series=series)
        for level in levels
        for series in (level.beside, level.alone, *level.figures.values())
    ]
    notes = [
        f"{level.models} models of {files} files, {level.volumes} volumes: publish {level.beside.wall * 1000:.2f} ms "
        f"(alone {level.alone.wall * 1000:.2f}), "
        + ", ".join(f"{name} {series.wall:.2f} s" for name, series in level.figures.items())
        + f", RSS {level.rss / MIB:.0f} MiB"
        for level in levels
    ]
    figures = [
        Figure("scale: publish, median, over that of an empty store", last.beside.ratio(last.alone), GROWTH, "times"),
        Figure("scale: reconcile at start", last.figures["reconcile"].wall, START_SECONDS, "s"),
        Figure("scale: sweep without deletion", last.figures["sweep"].wall, SWEEP_SECONDS, "s"),
        Figure("scale: driver's memory after a sweep, peak", last.rss / MIB, RSS_MIB, "MiB"),
    ]
    return Outcome(f"scale: {models} models, {models * files} files, {volumes} volumes", 0, rows, figures, notes)


def _measure(setting: Setting, empty: Node, full: Node, probe: int, models: int, volumes: int) -> _Level:
    """`probe` is the model that is published and unpublished beside everything else."""
    version = programs.own_version()
    alone, beside = Series("publish alone", version), Series("publish", version)
    names = ("reconcile", "sweep", *COMMANDS)
    figures = {name: Series(name, version) for name in names}
    for number in range(setting.size(PUBLISHES, 20)):
        pod = {empty: str(stock.reference(0)), full: str(stock.reference(probe))}
        for each in (empty, full) if number % 2 == 0 else (full, empty):
            wanted = node.pod(f"probe-{number}", pod[each])
            (alone if each is empty else beside).samples.append(Sample(each.publish(wanted)))
            each.unpublish(wanted)
    for _ in range(setting.rounds):
        full.driver.kill()
        full.start_again()
        figures["reconcile"].samples.append(Sample(_recovery_seconds(full)))
        for name, arguments in COMMANDS.items():
            command = full.driver.command(*arguments)
            figures[name].samples.append(processes.run(command, setting.directory / "words", full.driver.environment()))
    _collected(full)
    rss = full.driver.memory("VmHWM")
    figures["sweep"].samples += _sweeps(setting, full)
    full.driver.kill()
    full.start_again()  # without that budget
    setting.say(f"{models} models, {volumes} volumes measured")
    return _Level(models, volumes, alone, beside, figures, rss)


def _fill(where: Node, numbers: range, files: int, setting: Setting) -> None:
    for number in stock.fill(where.driver.store, numbers, files):
        if number % 100 == 0:
            setting.say(f"model {number} of {files} files is in")


def _recovery_seconds(full: Node) -> float:
    """From the driver's first line to the one that says that it recovered."""
    lines = full.driver.lines()
    starting = max(n for n, line in enumerate(lines) if line["message"] == "starting")
    recovered = next(line for line in lines[starting:] if line["message"] == "recovered")
    times = [datetime.fromisoformat(line["time"]) for line in (lines[starting], recovered)]
    return (times[1] - times[0]).total_seconds()


def _collected(full: Node) -> None:
    """Have the driver collect: a model that nothing holds goes, because of a budget just below what is used."""
    list(stock.fill(full.driver.store, range(9000, 9001), 12))
    used = json.loads(full.driver.run("du", "--json").stdout)["used"]
    text = full.driver.config.read_text()
    full.driver.config.write_text(f"{text}\n[cache]\nmax_bytes = {used - 8192}\ngrace_seconds = 0\n")
    deadline = time.monotonic() + PATIENCE_SECONDS
    before = sum(line["message"] == "collected" for line in full.driver.lines())
    while sum(line["message"] == "collected" for line in full.driver.lines()) == before:
        if time.monotonic() > deadline:
            raise FailedError("the driver did not collect though its store is over its budget")
        time.sleep(0.2)


def _sweeps(setting: Setting, full: Node) -> list[Sample]:
    words = setting.directory / "words"
    command = [sys.executable, "-c", _SWEEP, str(full.driver.store), str(setting.rounds)]
    sample = processes.run(command, words, full.driver.environment())
    walls = json.loads(words.read_text().splitlines()[-1])
    return [Sample(wall, cpu=sample.cpu, rss=sample.rss) for wall in walls]
