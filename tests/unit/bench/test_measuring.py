"""What every figure of a benchmark rests on: order, ratios, percentiles, the account of a child process."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench import machine, memory, processes
from bench.report import Figure
from bench.rounds import Sample, Series, interleave, percentile

MIB = 1 << 20


@dataclass
class Recorded:
    """A contender that notes its turns."""

    name: str
    turns: list[str] = field(default_factory=list)

    def run(self) -> Sample:
        self.turns.append(self.name)
        return Sample(1.0)


def test_each_round_begins_with_the_next_contender() -> None:
    turns: list[str] = []
    interleave([Recorded(name, turns) for name in "abc"], 3, lambda text: None)
    assert "".join(turns) == "abcbcacab"


def test_a_ratio_is_taken_in_each_round_before_the_median() -> None:
    ours, theirs = Series("ours"), Series("theirs")
    for mine, others in ((1, 2), (10, 30), (5, 5)):
        ours.samples.append(Sample(mine))
        theirs.samples.append(Sample(others))
    assert theirs.ratio(ours) == 2  # of the medians it would be 1
    assert (ours.wall, ours.least) == (5, 1)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 100), (0.99, 198), (1.0, 200), (0.001, 1)])
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: int) -> None:
    assert percentile(range(1, 201), share) == expected


def test_a_childs_peak_memory_is_its_own_and_not_its_parents(tmp_path: Path) -> None:
    ballast = bytearray(200 * MIB)
    sample = processes.run(["sh", "-c", "exit 0"], tmp_path / "words")
    assert 0 < sample.rss < 100 * MIB < len(ballast)


def test_a_childs_peak_memory_counts_its_children(tmp_path: Path) -> None:
    sample = processes.run(["sh", "-c", f"{sys.executable} -c 'bytearray(80 << 20)'; true"], tmp_path / "words")
    assert sample.rss > 80 * MIB


def test_a_child_that_fails_is_no_sample(tmp_path: Path) -> None:
    with pytest.raises(processes.FailedError, match="out of luck"):
        processes.run(["sh", "-c", "echo out of luck; exit 3"], tmp_path / "words")


def test_pinned_files_are_locked_in_memory(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(4 * MIB))
    before = _locked()
    with memory.pinned([tmp_path / "blob"]):
        assert _locked() - before == 4 * MIB
    assert _locked() == before


def _locked() -> int:
    line = next(n for n in Path("/proc/self/status").read_text().splitlines() if n.startswith("VmLck:"))
    return int(line.split()[1]) * 1024


def test_the_go_that_built_a_program_is_read_from_it() -> None:
    program = shutil.which("docker-registry")
    assert program is not None
    assert machine.go_version(Path(program)).startswith("go1.")
    assert machine.go_version(Path("/bin/sh")) == ""


def test_a_bound_is_kept_up_to_and_including_itself() -> None:
    assert Figure("p50", 5.0, 5.0, "ms").met
    assert not Figure("p50", 5.1, 5.0, "ms").met
    assert Figure("speed", 5.1, 5.0, "x", at_least=True).met
