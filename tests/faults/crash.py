"""What was played to a node that should survive everything: one line for each fault in `build/crash.jsonl`, and the
line that sums them.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Final

from tests.faults.trials import Verdict

RESULTS: Final = Path(__file__).resolve().parent.parent.parent / "build/crash.jsonl"
LONG: Final = os.environ.get("CRASH") == "long"
"""Whether this is `make crash`, which plays everything, or the short form."""
SEED: Final = int(os.environ.get("CRASH_SEED", "1"))
KILL, POWER_CUT, SYSTEM_CALL, DISK = "kill", "power cut", "system call", "disk"
COUNTS: Final = ("corrupt", "lost", "refetched_verified_bytes", "leaks")

_numbers = itertools.count(1)


def record(kind: str, where: str, verdict: Verdict, **evidence: Any) -> None:
    """Write the row of a fault, and fail the test where something is wrong."""
    number = next(_numbers)
    RESULTS.parent.mkdir(exist_ok=True)
    row = {
        "id": f"{kind.replace(' ', '-')}-{number}",
        "kind": kind,
        "where": where,
        "outcome": "survived" if not verdict.wrong else "; ".join(verdict.wrong),
        **{name: getattr(verdict, name) for name in COUNTS},
        "evidence": {**evidence, **verdict.evidence},
    }
    with RESULTS.open("w" if number == 1 else "a") as file:
        file.write(json.dumps(row) + "\n")
    assert verdict.wrong == [], f"{kind} at {where}: {json.dumps(row, indent=1)}"


def survived(kind: str, where: str, **evidence: Any) -> None:
    """The row of a fault after which the test itself looked at everything."""
    record(kind, where, Verdict(), **evidence)


def line() -> str:
    """The sum of the rows, empty where there are none in this run."""
    if next(_numbers) == 1:
        return ""
    rows = [json.loads(text) for text in RESULTS.read_text().splitlines()]
    kinds = Counter(row["kind"] for row in rows)
    result = {
        "kills": kinds[KILL],
        "power_cuts": kinds[POWER_CUT],
        "syscall_faults": kinds[SYSTEM_CALL],
        "disk_faults": kinds[DISK],
        **{name: sum(row[name] for row in rows) for name in COUNTS},
        "rows": str(RESULTS.relative_to(RESULTS.parent.parent)),
    }
    return f"crash: {json.dumps(result)}"
