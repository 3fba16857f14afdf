"""Every attack that the threat model lists, and some that it doesn't, played to one driver that stays up. Each ends
with its code and its reason, touches nothing outside of its tree and leaves nothing behind, and the next good model
mounts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.fakes.driver import ROOT
from tests.fakes.kubelet import NOT_FINAL
from tests.faults import oracle
from tests.hostile import archives, manifests, names, network
from tests.hostile.case import Case
from tests.hostile.world import OWNED, PLACES, World

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(300)]

CASES = [*manifests.CASES, *names.CASES, *archives.CASES, *network.CASES]
ROWS = {
    *(f"M{number}" for number in range(1, 21)),
    *(f"P{number}" for number in range(1, 9)),
    *(f"T{number}" for number in range(1, 18)),
    *(f"G{number}" for number in range(1, 6)),
    *(f"H{number}" for number in range(1, 24)),
}
"""The threat model's rows on manifests, names, archives, compression and networks."""
TABLE_ROW = re.compile(r"^\| ([A-Z][0-9]+) \| .* \| ([^|]*) \|$", re.MULTILINE)
"""Of the table in docs/security.md: the row and the codes."""
MOST_RSS = 200 << 20
"""Of the driver, at the end of all cases; what came before is in each row."""
FEWEST = 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_attack(case: Case, world: World, record_property: Callable[[str, object], None]) -> None:
    record_property("id", case.id)
    record_property("facts", case.row)
    attack = case.prepare(world, case.repository)
    trees = world.trees()
    pod, call = world.publish(attack, "victim", case.code, case.words)
    record_property("code", call.code.name)
    record_property("reason", call.message)
    record_property("outcome_of_case", "neutralised" if call.code is grpc.StatusCode.OK else "refused")
    assert call.code is case.code, call
    assert re.search(case.words, call.message), call.message
    if case.code is grpc.StatusCode.OK:
        assert world.shown(pod) == attack.shows
    else:
        assert len(call.message) > len("a word"), call
        assert world.trees() <= trees
    evidence = attack.evidence()
    world.remove(pod)
    world.calm()
    world.good(attack.host, case.repository)
    world.assert_nothing_left(partial=case.partial or case.code in NOT_FINAL)
    world.look_at_the_driver()
    assert world.figures.restarts == 0
    assert world.look_for_escapes() == []
    kept = "canaries untouched, nothing left, the next model mounted"
    record_property("evidence", f"{evidence}; {kept}" if evidence else kept)


def test_the_driver_was_one_process_and_stayed_small(world: World) -> None:
    world.look_at_the_driver()
    assert world.figures.restarts == 0
    assert world.figures.peak_rss < MOST_RSS
    assert world.figures.escapes == []


def test_what_the_corpus_leaves_in_the_store_is_right(world: World) -> None:
    assert oracle.faults(world.driver.store) == []
    trees = world.driver.store / "trees"
    owned = [path for path in world.directory.rglob(f"{OWNED}*") if not path.is_relative_to(trees)]
    assert owned + [path for place in PLACES for path in Path(place).glob(f"{OWNED}*")] == []


def test_every_row_of_the_threat_model_is_played() -> None:
    assert ROWS - {case.row for case in CASES} == set()
    assert len(CASES) >= FEWEST


def test_no_attack_is_played_twice() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
    assert len({case.repository for case in CASES}) == len(CASES)


def test_the_documentation_has_every_row_with_its_codes() -> None:
    text = (ROOT / "docs/security.md").read_text()
    documented = {row: set(re.findall(r"`(\w+)`", codes)) for row, codes in TABLE_ROW.findall(text)}
    played: dict[str, set[str]] = {}
    for case in CASES:
        played.setdefault(case.row, set()).add(case.code.name)
    assert documented == played
