"""What people and clocks do to a store: it is moved, copied, deleted in part, its times are wrong, others work on it at
the same time. It is told or mended, and nothing is destroyed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.content import store as stores
from tests.e2e.conftest import contents
from tests.fakes import mounts
from tests.faults import oracle
from tests.faults.trials import Shop, Trial
from tests.faults.victim import Answer, DiedError, ForkedDriver, Victim, command

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(300)]

MODELS = ["plain", "packed"]


@pytest.fixture
def trial(shop: Shop, tmp_path: Path) -> Iterator[Trial]:
    made = Trial(tmp_path, shop)
    yield made
    made.close()


def publish(trial: Trial) -> None:
    """All models, by a driver that ends then."""
    victim = trial.victim()
    for what, *models in (("start",), *(("publish", model) for model in MODELS), ("end",)):
        assert trial.step(victim, what, *models).ok
    victim.wait()


def test_a_root_that_was_moved_keeps_its_mounts(trial: Trial) -> None:
    publish(trial)
    moved = trial.directory / "elsewhere"
    trial.store.rename(moved)
    trial.store = moved
    trial.shop.forget()
    victim = trial.victim()
    for what, *models in (("start",), *(("publish", model) for model in MODELS)):
        assert trial.step(victim, what, *models).ok
    assert len(mounts.below(trial.directory)) == len(MODELS)
    victim.close()
    assert trial.shop.fetched().total() == 0
    assert trial.judge(dict.fromkeys(MODELS, True), MODELS).wrong == []


def test_a_root_that_was_copied_serves_from_the_copy_and_leaves_the_original_alone(trial: Trial) -> None:
    """Pods that run keep what they have from the original until they end."""
    publish(trial)
    original, copy = trial.store, trial.directory / "copy"
    subprocess.run(["cp", "-a", str(original), str(copy)], check=True)
    before = contents(original / "blobs/sha256")
    trial.reboot()
    trial.store = copy
    trial.shop.forget()
    assert trial.judge(dict.fromkeys(MODELS, False), MODELS).wrong == []
    assert contents(original / "blobs/sha256") == before
    assert oracle.faults(original) == []


def test_a_driver_on_a_copy_does_not_take_the_originals_mounts_for_its_own(trial: Trial) -> None:
    publish(trial)
    copy = trial.directory / "copy"
    subprocess.run(["cp", "-a", str(trial.store), str(copy)], check=True)
    trial.store = copy
    victim = trial.victim()
    assert victim.ask("start").ok
    assert all(trial.shows(model) for model in MODELS)
    for model in MODELS:
        done = trial.step(victim, "publish", model)
        assert done.ok or done.sentence, done
        assert trial.shows(model)
    assert victim.ask("collect").ok
    assert all(trial.shows(model) for model in MODELS)


@pytest.mark.parametrize("room", stores.ROOMS)
def test_a_room_that_somebody_deleted(room: str, trial: Trial) -> None:
    """Pods that run keep their files, and what is missing is fetched or made again."""
    publish(trial)
    shutil.rmtree(trial.store / room)
    victim = trial.victim()
    assert victim.ask("start").ok
    if room != "trees":  # what is mounted is a directory in there
        assert all(trial.shows(model) for model in MODELS)
    for model in MODELS:
        done = trial.step(victim, "publish", model)
        assert done.ok, done
    victim.close()
    trial.reboot()
    victim = trial.victim()
    for what, *models in (("start",), *(("publish", model) for model in MODELS)):
        done = trial.step(victim, what, *models)
        assert done.ok, done
    assert all(trial.shows(model) for model in MODELS)
    if room not in {"blobs/sha256", "unpacked"}:  # whose files live on in the trees
        assert [each for each in oracle.faults(trial.store) if "nobody's" not in each] == []
    for what, *models in (*(("unpublish", model) for model in MODELS), ("collect",), ("collect",)):
        done = trial.step(victim, what, *models)
        assert done.ok, done
    assert oracle.remains(trial.store) == []


def half(paths: list[Path]) -> list[Path]:
    return sorted(paths)[::2]


def test_a_store_of_which_every_second_file_was_deleted(trial: Trial) -> None:
    publish(trial)
    trial.reboot()
    for pattern in ("blobs/*/*", "unpacked/*/*/files/*", "trees/*/tree.json", "views/*/*", "refs/*", "scopes/*/*"):
        for path in half(list(trial.store.glob(pattern))):
            path.unlink()
    victim = trial.victim()
    for what, *models in (("start",), *(("publish", model) for model in MODELS)):
        done = trial.step(victim, what, *models)
        assert done.ok or done.sentence, done
        if done.ok and models:
            assert trial.shows(*models), done


def test_a_root_without_its_version_is_refused_and_nothing_is_deleted(trial: Trial) -> None:
    publish(trial)
    trial.reboot()
    (trial.store / "version").unlink()
    before = contents(trial.store)
    done = trial.victim().ask("start")
    assert done.error == "Precondition"
    assert "isn't a store, and isn't empty" in done.sentence
    assert contents(trial.store) == before


@pytest.mark.parametrize("years", [pytest.param(30, id="ahead"), pytest.param(-30, id="behind")])
def test_times_that_a_wrong_clock_wrote(years: int, trial: Trial) -> None:
    publish(trial)
    wrong = time.time() + years * 365 * 86400
    for path in sorted(trial.store.rglob("*"), reverse=True):
        os.utime(path, (wrong, wrong))
    trial.shop.forget()
    assert trial.judge(dict.fromkeys(MODELS, True), MODELS).wrong == []


def test_two_processes_publish_pull_and_sweep_on_one_store(trial: Trial) -> None:
    """As a driver and command lines do: what orders them is on the disk."""
    first = trial.victim()
    assert first.ask("start").ok
    assert trial.step(first, "publish", "plain").ok
    second = trial.victim()
    assert second.ask("start").ok
    jobs = [trial.volume(model) for model in ("packed", "archive")]
    others = [(f"other-{volume}", str(trial.target(f"other-{volume}")), attributes) for volume, _, attributes in jobs]
    first.tell("load", jobs, 4)
    second.tell("load", others, 4)
    errors = [answer for victim in (first, second) for answer in said(victim) if not answer.ok]
    assert errors == []
    for victim in (first, second):
        assert victim.ask("end").ok
        victim.close()
    assert trial.judge({"plain": True}, ["plain", "packed", "archive"]).wrong == []


def said(victim: Victim) -> Iterator[Answer]:
    """Until its load is over."""
    try:
        while (answer := victim.hear()).value is not None or not answer.ok:
            yield answer
    except DiedError:
        pytest.fail("a node died under load")


def test_a_driver_publishes_while_the_command_line_sweeps_and_pulls(shop: Shop) -> None:
    model = shop.models["packed"]
    with tempfile.TemporaryDirectory(prefix="mm-h-") as name, ForkedDriver(Path(name), [shop.registry]) as driver:
        target = driver.target("pod")
        for _ in range(3):
            beside = [command(driver, "gc", "--all"), command(driver, "pull", model.pushed.reference)]
            driver.publish("volume", target, {"model": model.pushed.reference})
            beside.append(command(driver, "gc", "--all"))
            for process in beside:
                process.join()
            assert [process.exitcode for process in beside] == [0, 0, 0], driver.log.read_text()
            assert contents(target) == model.files
            driver.unpublish("volume", target)
        assert oracle.faults(driver.store) == []
