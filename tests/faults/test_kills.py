"""SIGKILL at every failpoint of the driver, one run each, and at random moments under load: whatever was half done, the
next start needs no repair, no verified byte is fetched again, and the pod gets its model.
"""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from modelmount.content import checkpoints
from tests.e2e.conftest import contents, random_bytes, write_model
from tests.fakes import mounts, push
from tests.fakes.driver import ROOT, Driver
from tests.fakes.registry import Registry
from tests.faults import crash, oracle
from tests.faults.interception import Call, missing
from tests.faults.trials import Shop, Trial
from tests.faults.victim import DiedError, ForkedDriver, Victim

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(300)]

_CALL = re.compile(r'failpoint\(\s*"([a-z0-9_.]+)"')
SWEEPS, QUARANTINES, MIGRATIONS = "cache.sweep.", "cache.quarantine.", "content.migration."
"""Begin the failpoints that only a collection passes, those on the way of bad bytes, and those that only the start on
an older store passes (tests/faults/test_migration.py finds them all and kills there).
"""
CHECKPOINT = {"content.ingest.checkpoint"}
"""Passed only by a layer of 32 MiB and more."""
GROUPS = {"atomic.group_sync.before_sync", "content.group.before_sync", "content.group.after_rename"}
"""Passed for certain only by more small files than there are threads: few are divided among those."""
SMALL_FILES = 64


def names(*prefixes: str) -> list[str]:
    """Every failpoint of the sources that begins so: a new one is killed at without being listed anywhere. Without
    prefixes those that none of the others begins.
    """
    found = {name for path in (ROOT / "driver").rglob("*.py") for name in _CALL.findall(path.read_text())}
    if prefixes:
        return sorted(name for name in found if name.startswith(prefixes))
    return sorted(name for name in found if not name.startswith((SWEEPS, QUARANTINES, MIGRATIONS)))


@dataclass
class Published:
    """A model with raw layers and an archive in a real registry, one with an uncompressed archive that is worth a
    checkpoint, and one of many small files.
    """

    registry: Registry
    pushed: push.Pushed
    files: dict[str, bytes]
    big: push.Pushed
    big_files: dict[str, bytes]
    many: push.Pushed
    many_files: dict[str, bytes]

    def visiting(self, name: str) -> tuple[str, dict[str, bytes]]:
        """Reference and files of a model whose pull passes the failpoint `name`."""
        if name in CHECKPOINT:
            return self.big.reference, self.big_files
        if name in GROUPS:
            return self.many.reference, self.many_files
        return self.pushed.reference, self.files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    directory = tmp_path_factory.mktemp("kills")
    files = write_model(directory / "model")
    with Registry(directory / "registry") as registry:
        pusher = push.Pusher(registry.host, registry.connection)
        pushed = pusher.artifact("llm/tiny", "v1", push.oras(files, packed=["1_Pooling"]))
        weights = directory / "big"
        weights.mkdir()
        (weights / "model.safetensors").write_bytes(random_bytes(checkpoints.CHECKPOINT_BYTES + 1, 9))
        big = pusher.artifact("llm/big", "v1", push.modelpack(weights, packing="tar"))
        small = directory / "many"
        small.mkdir()
        for number in range(SMALL_FILES):
            (small / f"{number}.json").write_text(f"{number}\n")
        many = pusher.artifact("llm/many", "v1", push.oras(small))
        yield Published(registry, pushed, contents(files), big, contents(weights), many, contents(small))


@pytest.fixture
def driver(model: Published) -> Iterator[Driver]:
    with tempfile.TemporaryDirectory(prefix="mm-kill-") as name:
        driver = ForkedDriver(Path(name), [model.registry])
        yield driver
        driver.kill()
        mounts.detach_below(Path(name))


def use(driver: Driver, model: Published, name: str) -> bool:
    """Publish and unpublish as a kubelet would; False when the driver died on the way."""
    target = driver.target("pod")
    reference, files = model.visiting(name)
    try:
        driver.publish("volume", target, {"model": reference})
        assert contents(target) == files
        driver.unpublish("volume", target)
    except grpc.RpcError:
        return False
    return True


@pytest.mark.parametrize("name", names())
def test_killed_there_the_next_start_goes_on(name: str, driver: Driver, model: Published) -> None:
    model.registry.forget()
    driver.start(failpoints=f"{name}=kill", wait=False)
    died_starting = not _comes_up(driver)
    survived = not died_starting and use(driver, model, name)
    assert not survived, f"failpoint {name} was never reached"
    assert driver.wait_exit() == -9
    assert oracle.faults(driver.store) == []

    driver.start()
    assert oracle.half_made(driver.store) == []
    assert use(driver, model, name)
    assert oracle.faults(driver.store) == []
    assert mounts.below(driver.directory) == []
    assert list((driver.store / "volumes").glob("*.json")) == []
    assert not driver.target("pod").exists()
    gets = model.registry.blob_gets()
    assert max(gets.values()) <= 2
    crash.survived(crash.KILL, f"failpoint {name}", exit=-9, blobs=len(gets), requests=gets.total(), mounts=0)


@pytest.mark.parametrize(
    "name", ["content.blob.after_rename", "snapshots.tree.before_rename", "volumes.lease.after_write"]
)
def test_once_committed_nothing_is_fetched_again_after_a_kill(name: str, driver: Driver, model: Published) -> None:
    driver.start(failpoints=f"{name}=kill")
    assert not use(driver, model, name)
    driver.wait_exit()
    committed = {f"sha256:{path.name}" for path in (driver.store / "blobs/sha256").glob("[0-9a-f]*")}
    model.registry.forget()
    driver.start()
    assert use(driver, model, name)
    assert set(model.registry.blob_gets()) & committed == set()


def _comes_up(driver: Driver) -> bool:
    try:
        driver.wait_ready()
    except RuntimeError:
        return False
    return True


# -- collections, and bad bytes


@pytest.fixture
def trial(shop: Shop, tmp_path: Path) -> Iterator[Trial]:
    made = Trial(tmp_path, shop)
    yield made
    made.close()


def dies(trial: Trial, victim: Victim, *steps: tuple[str, ...]) -> bool:
    """Whether it dies at one of these steps; each before must succeed."""
    try:
        for what, *models in steps:
            done = trial.step(victim, what, *models)
            assert done.ok, done
    except DiedError:
        return True
    return False


@pytest.mark.parametrize("name", names(SWEEPS))
def test_killed_in_a_sweep(name: str, trial: Trial) -> None:
    """Of one model and half of another."""
    victim = trial.victim(failpoints="content.ingest.before_commit=kill")
    assert dies(trial, victim, ("start",), ("publish", "plain"))
    victim = trial.victim(failpoints=f"{name}=kill")
    assert dies(trial, victim, ("start",), ("publish", "packed"), ("unpublish", "packed"), ("collect",)), name
    assert victim.wait() == -9
    crash.record(crash.KILL, f"failpoint {name}", trial.judge({}, ["plain", "packed"]), exit=-9)


@pytest.mark.parametrize("name", names(QUARANTINES))
def test_killed_on_the_way_to_quarantine(name: str, trial: Trial) -> None:
    victim = trial.victim(failpoints=f"{name}=kill")
    assert not dies(trial, victim, ("start",), ("publish", "plain"), ("unpublish", "plain"))
    weights = max((trial.store / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    with pytest.raises(DiedError):
        victim.ask("isolate", f"blobs/sha256/{weights.name}")
    assert victim.wait() == -9
    crash.record(crash.KILL, f"failpoint {name}", trial.judge({}, ["plain", "packed"]), exit=-9)


# -- random moments

RANDOM = 500 if crash.LONG else 24
BATCHES = 20 if crash.LONG else 3
ROUNDS = 2
HELD, LOADED = "plain", ["packed", "archive"]
"""What a pod has all the time, and what comes and goes."""


class Counted:
    """Kills the process before the n-th call that changes something, where there is one."""

    def __init__(self, after: int | None = None) -> None:
        self.where, self.seen = "", 0
        self.pid = 0
        self._after = after

    def __call__(self, call: Call) -> int:
        self.seen += call.changes
        if self.seen == self._after and not self.where:
            self.where = call.kind
            os.kill(self.pid, signal.SIGKILL)
        return 0


def under_load(trial: Trial, kill: Counted) -> tuple[set[str], list[str]]:
    """Publish, unpublish and collect at the same time until it dies. The models that were acknowledged, and what went
    wrong before.
    """
    victim = trial.victim(kill)
    kill.pid = victim.pid
    acknowledged: set[str] = set()
    errors = []
    try:
        for what, *models in (("start",), ("publish", HELD)):
            done = trial.step(victim, what, *models)
            assert done.ok, done
            acknowledged.update(models)
        victim.tell("load", [trial.volume(model) for model in LOADED], ROUNDS)
        targets = {str(trial.target(model)): model for model in LOADED}
        while (answer := victim.hear()).value is not None:
            if not answer.ok:
                errors.append(f"{answer.error}: {answer.sentence}")
            elif answer.value[0] == "+":
                acknowledged.add(targets[answer.value[1:]])
            elif answer.value[0] == "-":
                acknowledged.discard(targets[answer.value[1:]])
    except DiedError:
        pass
    victim.close()
    return acknowledged, errors


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_killed_at_random_moments_under_load(batch: int, trial: Trial) -> None:
    if why := missing():
        pytest.skip(why)
    chance = random.Random(f"{crash.SEED} {batch}")
    whole = Counted()
    under_load(trial, whole)
    for _ in range(RANDOM // BATCHES):
        kill = Counted(chance.randint(1, whole.seen))
        acknowledged, errors = under_load(trial, kill)
        verdict = trial.judge(dict.fromkeys(acknowledged, True), [HELD, *LOADED])
        verdict.count("lost", [error for error in errors if error.startswith("unexpected")])
        where = f"under load, before {kill.where or 'the end'}"
        crash.record(crash.KILL, where, verdict, acknowledged=sorted(acknowledged), errors=errors)
