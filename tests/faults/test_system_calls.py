"""Every system call of a start, a publish, an unpublish and a sweep fails, once and for good: each ends with an error
that is a sentence or without one, and once the fault is over the same process does what it couldn't.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import crash
from tests.faults.interception import Call, missing
from tests.faults.trials import Shop, Trial, life
from tests.unit.system.processes import mounted

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(900)]

MODELS = ["plain", "packed"]
SHARDS = 8
SHORT = 8
"""Faults that each shard plays in the short form: of each kind of call one that happens once, and one for good."""
DOCUMENT_BYTES = 4096
"""Manifests and configs, which are asked for again."""
_FULL = {
    "openat",
    "mkdir",
    "mkdirat",
    "write",
    "pwrite64",
    "link",
    "rename",
    "renameat2",
    "fsync",
    "fdatasync",
    "syncfs",
}
"""What a full disk fails."""


@pytest.fixture
def trial(shop: Shop, tmp_path: Path) -> Iterator[Trial]:
    if why := missing():
        pytest.skip(why)
    # In memory: what a sync does isn't looked at here, and waiting for the disk is most of the time.
    with mounted(tmp_path / "disk", "tmpfs", "size=64m,mode=700") as disk:
        made = Trial(tmp_path, shop, disk)
        yield made
        made.close()


def kinds(trial: Trial) -> Counter[str]:
    """What calls such a life makes, and how often, but for those that only read in the short form."""
    found: Counter[str] = Counter()

    def note(call: Call) -> int:
        if crash.LONG or call.changes:
            found[call.kind] += 1
        return 0

    victim = trial.victim(note)
    for what, *models in life(MODELS):
        done = trial.step(victim, what, *models)
        assert done.ok, done
    victim.ask("end")
    trial.close()
    return found


class Failing:
    """Fails the calls of a kind at its n-th occurrence, and with `lasting` all of that name from there on."""

    def __init__(self, kind: str, occurrence: int, number: int, *, lasting: bool) -> None:
        self.kind, self.number, self.lasting = kind, number, lasting
        self.failed: list[str] = []
        self._name = kind.partition(" ")[0]
        self._left = occurrence

    def __call__(self, call: Call) -> int:
        if self.failed:
            fails = self.lasting and call.name == self._name
        elif call.kind == self.kind:
            self._left -= 1
            fails = self._left == 0
        else:
            fails = False
        if fails:
            self.failed.append(call.place)
        return self.number if fails else 0


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_call_fails_once_and_for_good(shard: int, trial: Trial) -> None:
    found = kinds(trial)
    chosen = sorted(found, key=lambda kind: hashlib.sha256(kind.encode()).digest())[shard::SHARDS]
    played = 0
    for kind in chosen:
        later = found[kind] if crash.LONG else 1
        for occurrence, lasting in sorted({(1, False), (1, True), (later, False)}):
            full = kind.partition(" ")[0] in _FULL and (lasting or occurrence > 1)
            number = errno.ENOSPC if full else errno.EIO
            if not play(trial, Failing(kind, occurrence, number, lasting=lasting)):
                # A call of a store's very first life, or one that isn't made in every life.
                shutil.rmtree(trial.store)
                played += play(trial, Failing(kind, occurrence, number, lasting=lasting))
            else:
                played += 1
        if played >= SHORT and not crash.LONG:
            break


def play(trial: Trial, failing: Failing) -> bool:
    """Whether the call was made."""
    victim = trial.victim(failing)
    answers: dict[str, str] = {}
    wrong: list[str] = []
    for what, *models in life(MODELS):
        done = trial.step(victim, what, *models)
        if not done.ok:
            answers[" ".join((what, *models))] = f"{done.error}: {done.sentence}"
        elif what == "publish" and not trial.shows(*models):
            wrong.append(f"{models} was published with other files")
        if done.error.startswith("unexpected"):
            wrong.append(f"{what} {models}: {done.error}: {done.sentence}")
        if what == "start" and not done.ok:
            break  # a driver that can't start serves nobody
    needed, had = trial.missing_bytes(MODELS), victim.ask("fetched").value
    victim.decide(lambda call: 0)
    for what, *models in (("start",), *(("publish", model) for model in MODELS)):
        done = trial.step(victim, what, *models)
        if not done.ok:
            wrong.append(f"after the fault, {what} {models} fails: {done.error}: {done.sentence}")
    again = victim.ask("fetched").value - had - needed
    victim.ask("end")
    victim.close()
    found = trial.judge(dict.fromkeys(MODELS, True), MODELS)
    if again > DOCUMENT_BYTES:
        found.refetched_verified_bytes += int(again)
        wrong.append(f"{again} bytes more were fetched than were missing")
    found.count("lost", wrong)
    found.evidence["failed"] = len(failing.failed)
    if not failing.failed:
        return False
    mode = "for good" if failing.lasting else "once"
    where = f"{failing.kind}: {errno.errorcode[failing.number]} {mode}"
    crash.record(crash.SYSTEM_CALL, where, found, answers=answers)
    return True
