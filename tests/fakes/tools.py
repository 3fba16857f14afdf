"""The pinned Go programs that scripts/tools builds into a cache outside the tree."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTS = ("scripts/tools.list", "tests/cluster/tools.list")


def cache() -> Path:
    """Where scripts/tools puts what it builds."""
    named = os.environ.get("MODELMOUNT_TOOLS")
    return Path(named or f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/modelmount/tools")


def tool(name: str) -> Path:
    """A program of one of LISTS. Raises FileNotFoundError when it isn't there."""
    for line in (line for file in LISTS for line in (ROOT / file).read_text().splitlines()):
        listed, _, rest = line.partition(" ")
        if listed == name:
            path = cache() / f"{name}-{rest.split()[1]}" / name
            if path.exists():
                return path
            raise FileNotFoundError(f"{path} is not built; run scripts/tools")
    raise FileNotFoundError(f"no list of scripts/tools has {name}")
