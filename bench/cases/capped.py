"""(f) Cold pull of one blob from a server that gives each connection 50 MB/s, as registries and object stores do: what
a client makes of many connections.
"""

from __future__ import annotations

from bench import artifact, memory
from bench.paced import BYTES_PER_SECOND, Paced
from bench.peers import Aria2, Crane, Curl, Oras, Skopeo, Target
from bench.pulls import compare
from bench.report import Figure, Outcome
from bench.setting import Setting

GIB, MIB = 1 << 30, 1 << 20
GOAL = 8.0
SINGLE = (Curl, Skopeo, Oras, Crane)
"""They ask for a blob with one request."""


def run(setting: Setting) -> Outcome:
    """1 GiB."""
    size = setting.size(GIB, 64 * MIB)
    site = setting.directory / "site"
    made = artifact.raw(site, [size])
    with memory.pinned([made.layers[0].path]), Paced(setting.directory / "paced", site) as server:
        target = Target(server, made, setting.directory / "p")
        title = f"{size / MIB:.0f} MiB at {BYTES_PER_SECOND // 10**6} MB/s a connection"
        notes = [
            "The kernel paces each of the server's sockets; aria2c has 8 of them, curl, skopeo, oras and crane one."
        ]
        outcome = compare("f", title, target, (*SINGLE, Aria2), setting, notes=notes)
    series = {row.tool: row.series for row in outcome.rows if row.series is not None}
    ours = series["modelmount"]
    single = min(series[kind.name].ratio(ours) for kind in SINGLE if kind.name in series)
    figures = [
        *outcome.figures,
        Figure("f: speed over the best with one connection", single, GOAL, "x", at_least=True),
    ]
    if Aria2.name in series:
        figures.append(Figure("f: speed over aria2c", series[Aria2.name].ratio(ours), 1.0, "x", at_least=True))
    return Outcome(outcome.title, outcome.size, outcome.rows, figures, outcome.notes)
