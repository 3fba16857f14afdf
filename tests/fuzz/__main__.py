"""`make fuzz SECONDS=…`: fuzz every parser for its share of the time, with another seed each time.

Ends with `fuzz: {"seconds":…,"runs":…,"findings":…}`; findings lie in build/fuzz, and running their bytes is a test
from then on when they are moved to tests/fuzz/corpus. With --keep, inputs that reached new lines go there at once.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from pathlib import Path

from tests.fuzz.fuzzer import CORPUS, FindingError, Fuzzer, save
from tests.fuzz.targets import TARGETS

FINDINGS = Path(__file__).resolve().parents[2] / "build/fuzz"


def main() -> int:
    """The number of findings, at most 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only these")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--keep", action="store_true", help="add what reached new lines to the corpus")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    share, runs, findings, began = options.seconds / len(names), 0, 0, time.monotonic()
    print(f"seed {options.seed}, {share:.0f} s for each of {', '.join(names)}", flush=True)
    for name in names:
        fuzzer = Fuzzer(name, TARGETS[name], options.seed)
        deadline, missed = time.monotonic() + share, 0
        try:
            fuzzer.begin()
        except FindingError as e:
            missed += _tell(name, e)
        while time.monotonic() < deadline:
            try:
                fuzzer.step()
            except FindingError as e:
                missed += _tell(name, e)
                if missed > 5:
                    break  # the same one again and again, most likely
        if options.keep:
            save(CORPUS / name, fuzzer.kept)
        runs, findings = runs + fuzzer.runs, findings + missed
        print(f"{name}: {fuzzer.runs} runs, {len(fuzzer.kept)} inputs kept, {missed} findings", flush=True)
    seconds = round(time.monotonic() - began)
    print(f"fuzz: {json.dumps({'seconds': seconds, 'runs': runs, 'findings': findings})}")
    return int(findings > 0)


def _tell(name: str, finding: FindingError) -> int:
    (path,) = save(FINDINGS / name, [finding.data])
    print(f"{name}: {finding} ({path})", flush=True)
    return 1


sys.exit(main())
