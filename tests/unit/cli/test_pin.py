"""`modelmount pin` and `unpin`: what is pinned stays."""

from __future__ import annotations

import os
import time

import click
import pytest

from modelmount.cli.pin import UNTIL
from tests.unit.cli.conftest import Machine


def age(machine: Machine) -> None:
    for pattern in ("models/*", "scopes/*", "unpacked/*/*/index.json", "trees/*/tree.json"):
        for path in machine.driver.store.glob(pattern):
            os.utime(path, (1, 1))


@pytest.mark.registry
def test_a_pinned_model_stays_until_it_is_unpinned(machine: Machine) -> None:
    pushed = machine.push()
    missing = machine.run("pin", pushed.reference)
    assert missing.code == 3
    assert missing.err.endswith("is not on this node; pull and pin it with --fetch\n")
    assert not machine.driver.store.exists()  # who only asks makes no store
    done = machine.run("pin", pushed.reference, "--fetch", "--until", "1h", "--json").objects[-1]["result"]
    assert (done["reference"], done["digest"]) == (pushed.reference, pushed.digest)
    assert 3500 < done["until"] - time.time() <= 3600
    age(machine)
    assert machine.run("gc", "--all", "--json").object["result"]["models"] == []
    (model,) = machine.run("ls", "--json").object["models"]
    assert model["pins"] == [{"reference": pushed.reference, "until": done["until"]}]
    assert "pinned for" in machine.run("ls").out
    assert machine.run("pin", pushed.reference).out.startswith(f"{pushed.reference} is pinned\n")
    assert "not pinned any more" in machine.run("unpin", pushed.reference).out
    assert machine.run("unpin", pushed.reference).code == 3
    age(machine)
    assert machine.run("gc", "--all", "--json").object["result"]["models"] == [pushed.reference]


@pytest.mark.registry
def test_a_pin_moves_with_its_tag_when_it_is_made_again(machine: Machine) -> None:
    first = machine.push()
    machine.run("pin", first.reference, "--fetch")
    (machine.directory / "model/config.json").write_text("{}")
    second = machine.push()
    machine.run("pull", second.reference)
    age(machine)
    machine.run("gc", "--all")
    pinned = machine.run("ls", "--json").object["models"]
    assert [model["digest"] for model in pinned if model["pins"]] == [first.digest]
    machine.run("pin", second.reference, "--fetch")
    age(machine)
    machine.run("gc", "--all")
    assert [model["digest"] for model in machine.run("ls", "--json").object["models"]] == [second.digest]


@pytest.mark.parametrize("text", ["7d", "2w", "30m", "2999-01-31", "2999-01-31T18:00", "2999-01-31T18:00+02:00"])
def test_times_to_come(text: str) -> None:
    assert UNTIL.convert(text, None, None) > time.time()


@pytest.mark.parametrize("text", ["", "0s", "soon", "7", "2001-01-31", "99999999999999999999w"])
def test_other_times(text: str) -> None:
    with pytest.raises(click.BadParameter):
        UNTIL.convert(text, None, None)
