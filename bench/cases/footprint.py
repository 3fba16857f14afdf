"""Peak memory of the driver by the size of what it pulls."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import ExitStack

from bench import artifact, memory
from bench.peers import Target
from bench.pulls import RSS_MIB, Modelmount, Prepared, peak_mib
from bench.report import Figure, Outcome, Row
from bench.rounds import interleave
from bench.servers import Nginx
from bench.setting import Setting

GIB, MIB = 1 << 30, 1 << 20


def run(setting: Setting) -> Outcome:
    """One blob of 1 GiB, then one of 8 GiB."""
    rows, figures = [], []
    for size in (setting.size(GIB, 64 * MIB), setting.size(8 * GIB, 512 * MIB)):
        site = setting.directory / "site"
        made = artifact.raw(site, [size])
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, site)
            stack.enter_context(memory.pinned([made.layers[0].path]))
            server = stack.enter_context(Nginx(setting.directory / "nginx", site))
            target = Target(server, made, setting.directory / "p")
            (series,) = interleave([Prepared(Modelmount(target), target)], setting.rounds, setting.say)
        tool = f"modelmount, {size / MIB:.0f} MiB"
        rows.append(Row("memory", tool, series=dataclasses.replace(series, name=tool)))
        figures.append(Figure(f"memory: peak for {size / MIB:.0f} MiB", peak_mib(series), RSS_MIB, "MiB"))
    return Outcome("memory: one blob of two sizes", 0, rows, figures)
