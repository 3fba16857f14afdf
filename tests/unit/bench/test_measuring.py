"""What every figure of a benchmark rests on: order, ratios, percentiles, the account of a child process."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench import memory, processes, programs, report, rounds
from bench.report import Figure, Outcome, Row
from bench.rounds import Sample, Series, interleave, percentile

MIB = 1 << 20


@dataclass
class Recorded:
    """A contender that notes its turns."""

    name: str
    turns: list[str] = field(default_factory=list)
    version: str = "1"
    wall: float = 1.0

    def run(self) -> Sample:
        self.turns.append(self.name)
        return Sample(self.wall)


def test_each_round_begins_with_the_next_contender() -> None:
    turns: list[str] = []
    interleave([Recorded(name, turns) for name in "abc"], 3, lambda text: None)
    assert "".join(turns) == "abcbcacab"


def test_patience_with_a_contender_ends() -> None:
    turns: list[str] = []
    slow = Recorded("s", turns, wall=rounds.PATIENCE_SECONDS / 2)
    interleave([slow, Recorded("q", turns)], 5, lambda text: None)
    assert (turns.count("s"), turns.count("q")) == (3, 5)


def test_a_contender_that_cannot_do_it_is_out_and_the_others_go_on() -> None:
    class Broken(Recorded):
        def run(self) -> Sample:
            super().run()
            raise rounds.OutError("too many files")

    turns: list[str] = []
    broken, quick = interleave([Broken("b", turns), Recorded("q", turns)], 3, lambda text: None)
    assert (turns.count("b"), turns.count("q")) == (1, 3)
    assert (broken.out, broken.samples, quick.out, len(quick.samples)) == ("too many files", [], "", 3)


def series(name: str, *walls: float) -> Series:
    return Series(name, "1.2", [Sample(wall, cpu=0.5, rss=3 * MIB, served=10) for wall in walls])


def test_a_ratio_is_of_the_medians() -> None:
    ours = series("ours", 1, 10, 5)
    assert series("theirs", 2, 30, 5).ratio(ours) == 1
    assert (ours.wall, ours.least) == (5, 1)


def test_the_document_has_the_shape_that_its_readers_know(tmp_path: Path) -> None:
    rows = [Row("a", "modelmount", series("modelmount", 2, 4)), Row("a", "curl", series("curl", 6))]
    path = tmp_path / "results" / "latest.json"
    report.write(path, {"cpus": 2}, [Outcome("a", 10, [*rows, Row("a", "modctl", reason="not to be had")])])
    document = json.loads(path.read_text())
    assert document == {
        "machine": {"cpus": 2},
        "cases": [
            {
                "case": "a",
                "tool": "modelmount",
                "wall_s": 3.0,
                "cpu_s": 0.5,
                "rss_mib": 3.0,
                "bytes_served": 10,
                "rounds": 2,
                "version": "1.2",
            },
            {
                "case": "a",
                "tool": "curl",
                "wall_s": 6.0,
                "cpu_s": 0.5,
                "rss_mib": 3.0,
                "bytes_served": 10,
                "rounds": 1,
                "version": "1.2",
            },
            {"case": "a", "tool": "modctl", "reason": "not to be had"},
        ],
        "ratios": {"a": {"curl": 2.0}},
    }


def test_cases_that_were_not_measured_stay_in_the_document(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    for case, wall in (("a", 1), ("b", 2), ("a", 3)):
        report.write(path, {}, [Outcome(case, 1, [Row(case, "modelmount", series("modelmount", wall))])])
    cases = json.loads(path.read_text())["cases"]
    assert [(row["case"], row["wall_s"]) for row in cases] == [("a", 3), ("b", 2)]


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
    assert programs.go_version(Path(program)).startswith("go1.")
    assert programs.go_version(Path("/bin/sh")) == ""


def test_a_bound_is_kept_up_to_and_including_itself() -> None:
    assert Figure("p50", 5.0, 5.0, "ms").met
    assert not Figure("p50", 5.1, 5.0, "ms").met
    assert Figure("speed", 5.1, 5.0, "x", at_least=True).met
