"""(c) Cold pull of thousands of small files, each a layer: requests and file operations, not bytes."""

from __future__ import annotations

import random
import shutil

from bench import artifact, memory, peers
from bench.bare import Bare
from bench.peers import CurlOpenssl, Target
from bench.pulls import compare
from bench.report import Outcome
from bench.servers import Nginx
from bench.setting import Setting

SIZES = (1 << 10, 64 << 10)


def run(setting: Setting) -> Outcome:
    """3,000 files of 1 to 64 KiB."""
    count = setting.size(3000, 100)
    source = random.Random(count)
    site = setting.directory / "site"
    made = artifact.raw(site, [source.randint(*SIZES) for _ in range(count)])
    kinds = [kind for kind in peers.ALL if kind is not CurlOpenssl]
    with memory.pinned([layer.path for layer in made.layers]), Nginx(setting.directory / "nginx", site) as server:
        aside = setting.directory / "aside"
        aside.mkdir()
        target = Target(server, made, setting.directory / "p", aside)
        notes = [
            "curl | openssl is left out: two processes a file say nothing about a pull.",
            "The bare steps are what a durable pull can't do without, in Python: nobody's product.",
            "What was pulled stays until all rounds are over: deleting it slows down who comes next.",
        ]
        try:
            title = f"{count} files of 1 to 64 KiB"
            return compare("c", title, target, kinds, setting, beside=[Bare(target)], notes=notes)
        finally:
            shutil.rmtree(aside)
