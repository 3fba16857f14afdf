"""The power is cut at random moments of pulls, publishes, unpublishes and sweeps, on ext4 and on XFS: what was answered
is there afterwards, what is there is whole, and what a checkpoint covered isn't fetched again.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import crash, oracle
from tests.faults.interception import Call, missing
from tests.faults.trials import Shop, Trial, life
from tests.faults.victim import DiedError
from tests.unit.content import powercut
from tests.unit.content.powercut import JOURNAL_ONLY, NOTHING, Disk

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(900)]

MIB = 1 << 20
MODELS = ["plain", "packed", "archive"]
CUTS = 50 if crash.LONG else 12
FLAGS = {JOURNAL_ONLY: "the journal without the data", NOTHING: "nothing flushed"}


class Cut:
    """Cuts the power before the n-th call that changes something, and kills whoever made it. Knows what was durable by
    then.
    """

    def __init__(self, disk: Disk, after: int, flag: int) -> None:
        self.where = ""
        self.synced: dict[str, int] = {}
        self._disk, self._left, self._flag = disk, after, flag
        self._syncing: dict[int, tuple[str, int]] = {}

    def at(self, pid: int) -> None:
        """Whom to kill."""
        self._pid = pid

    def __call__(self, call: Call) -> int:
        if self.where:
            return 0
        self._note(call)
        self._left -= call.changes
        if self._left == 0:
            self.where = call.kind
            self._disk.cut(self._flag)
            os.kill(self._pid, signal.SIGKILL)
        return 0

    def _note(self, call: Call) -> None:
        """A thread's next call shows that its last one, the sync of a journal, has returned."""
        if done := self._syncing.pop(call.thread, None):
            self.synced[done[0]] = max(done[1], self.synced.get(done[0], 0))
        if call.name == "fdatasync" and call.place.endswith("/journal"):
            journal = self._disk.path.parent / call.place
            self._syncing[call.thread] = (journal.parent.name, oracle.proved(journal))


@pytest.fixture
def cuttable(request: pytest.FixtureRequest, shop: Shop, tmp_path: Path) -> Iterator[tuple[Trial, Disk]]:
    if why := missing():
        pytest.skip(why)
    with powercut.powered(tmp_path, 320 * MIB, request.param) as disk:
        trial = Trial(tmp_path, shop, disk.path)
        yield trial, disk
        trial.close()


@pytest.mark.parametrize("cuttable", ["ext4", "xfs"], indirect=True)
def test_the_power_is_cut_at_random_moments(cuttable: tuple[Trial, Disk], request: pytest.FixtureRequest) -> None:
    trial, disk = cuttable
    kind = request.node.callspec.params["cuttable"]
    chance = random.Random(f"{crash.SEED} {kind}")
    length = calls(trial)
    for number in range(CUTS if kind == "ext4" or crash.LONG else CUTS // 2):
        flag = (JOURNAL_ONLY, NOTHING)[number % 2]
        cut = Cut(disk, chance.randint(1, length), flag)
        acknowledged, last = live(trial, cut)
        trial.reboot()
        if not cut.where:  # this life made fewer calls
            disk.cut(flag)
        disk.return_power()
        kept = oracle.kept(trial.store)
        verdict = trial.judge(dict.fromkeys(acknowledged, False), MODELS)
        for ingest, synced in cut.synced.items():
            name = "sha256:" + ingest.partition("-")[0]
            if not ingest.endswith("-raw") or kept.get(name, 0) >= synced or last == "collect":
                continue
            verdict.count("lost", [f"{synced} bytes of {name} were made durable, {kept.get(name, 0)} are there"])
        where = f"{kind}, {FLAGS[flag]}, during {last}, before {cut.where or 'the end'}"
        crash.record(crash.POWER_CUT, where, verdict, acknowledged=acknowledged, checkpoints=cut.synced)


def calls(trial: Trial) -> int:
    """How many such a life makes."""
    count = 0

    def note(call: Call) -> int:
        nonlocal count
        count += call.changes
        return 0

    victim = trial.victim(note)
    for what, *models in life(MODELS):
        assert trial.step(victim, what, *models).ok
    trial.close()
    return count


def live(trial: Trial, cut: Cut) -> tuple[list[str], str]:
    """What was acknowledged, and what was asked for last."""
    victim = trial.victim(cut)
    cut.at(victim.pid)
    acknowledged: list[str] = []
    last = ""
    try:
        for what, *models in life(MODELS):
            last = " ".join((what, *models))
            if what == "unpublish":
                acknowledged.remove(*models)
            done = trial.step(victim, what, *models)
            if not done.ok:
                assert cut.where, done  # it saw the first errors before it died
                break
            if what == "publish":
                acknowledged += models
    except DiedError:
        pass
    return acknowledged, last
