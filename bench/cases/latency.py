"""(g) Cold pull of one blob over a link with a round trip of 20 ms."""

from __future__ import annotations

from bench import artifact, memory
from bench.link import SERVER_ADDRESS, Link
from bench.peers import Aria2, Crane, Ctr, Curl, Oras, Skopeo, Target
from bench.pulls import compare
from bench.report import Outcome
from bench.servers import Nginx
from bench.setting import Setting

GIB, MIB = 1 << 30, 1 << 20
ROUND_TRIP_SECONDS = 0.02


def run(setting: Setting) -> Outcome:
    """1 GiB."""
    size = setting.size(GIB, 64 * MIB)
    site = setting.directory / "site"
    made = artifact.raw(site, [size])
    with memory.pinned([made.layers[0].path]), Link(ROUND_TRIP_SECONDS) as link:
        server = Nginx(setting.directory / "nginx", site, address=SERVER_ADDRESS)
        with link.inside("server"):
            server.__enter__()
        try:
            with link.inside("client"):
                target = Target(server, made, setting.directory / "p")
                title = f"{size / MIB:.0f} MiB with a round trip of {ROUND_TRIP_SECONDS * 1000:.0f} ms"
                notes = [
                    "The link is two network namespaces and a program that holds each packet; it works on the same",
                    "processors. One connection is bound by the server's socket buffer (net.ipv4.tcp_wmem).",
                ]
                kinds = (Curl, Skopeo, Ctr, Oras, Crane, Aria2)
                return compare("g", title, target, kinds, setting, notes=notes)
        finally:
            server.__exit__(None, None, None)
