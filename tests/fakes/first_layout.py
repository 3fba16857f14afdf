"""A store as the first programs wrote it, layout version 1: a directory of leases for each volume, views that name
nothing but their tree. Made out of a present one, while nobody uses it.
"""

from __future__ import annotations

import json
from pathlib import Path


def turn_back(store: Path) -> None:
    """Write names and records as version 1 began; content, trees and mounts stay."""
    for lease in list((store / "volumes").glob("*-*.json")):
        volume, _, target = lease.name.partition("-")
        (store / "volumes" / volume).mkdir(mode=0o700, exist_ok=True)
        record = json.loads(lease.read_bytes())
        record.pop("made_directory", None)  # not known then
        lease.unlink()
        (store / "volumes" / volume / target).write_text(json.dumps(record))
    for view in (store / "views").glob("*/*"):
        record = json.loads(view.read_bytes())
        record.pop("manifest", None)
        view.write_text(json.dumps(record))
    (store / "version").write_text("1\n")
