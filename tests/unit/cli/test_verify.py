"""`modelmount verify` and `du`: what is bad, and what takes how much."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes import push
from tests.unit.cli.conftest import Machine


def damage(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"\0bad")
        os.fsync(file.fileno())
    path.chmod(0o444)


@pytest.mark.registry
def test_bad_bytes_are_found_put_away_and_fetched_again(machine: Machine) -> None:
    pushed = machine.push()
    machine.run("pull", pushed.reference)
    good = machine.run("verify")
    assert (good.code, good.out.rpartition("read, ")[2]) == (0, "all good\n")
    blob = max((machine.driver.store / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    damage(blob)
    reported = machine.run("verify", "--report-only", pushed.reference)
    assert reported.code == 16
    assert f"blobs/sha256/{blob.name}: mismatch" in reported.err
    found = machine.run("verify", "--json")
    assert found.code == 16
    (bad,) = found.object["result"]["bad"]
    assert (bad["result"], bad["models"], bad["volumes"]) == ("mismatch", [pushed.reference], [])
    assert not blob.exists()
    assert machine.run("ls", "--json").object["models"][0]["complete"] is False
    machine.registry.forget()
    assert machine.run("pull", pushed.reference).code == 0
    assert machine.registry.blob_gets() == {f"sha256:{blob.name}": 1}
    assert machine.run("verify").code == 0


@pytest.mark.registry
def test_a_fraction_a_time_and_a_rate(machine: Machine) -> None:
    pushed = machine.push()
    machine.run("pull", pushed.reference)
    whole = machine.run("verify", "--json").object["result"]["bytes"]
    assert whole > pushed.size
    part = machine.run("verify", "--fraction", "1%", "--json")
    assert (part.code, part.object["result"]["finished"]) == (0, True)
    assert 0 < part.object["result"]["bytes"] < whole
    slow = machine.run("verify", "--for", "1s", "--rate", "1k", "--json")
    assert (slow.code, slow.object["result"]["finished"]) == (64, False)
    assert machine.run("verify", "registry.example.com/llm/other:v1").code == 3
    assert machine.run("verify", "--fraction", "200%").code == 2


@pytest.mark.registry
def test_du_tells_exclusive_from_shared_bytes(machine: Machine) -> None:
    first = machine.push(tag="v1")
    machine.run("pull", first.reference)
    (machine.directory / "model/config.json").write_text("{}")
    second: push.Pushed = machine.push(tag="v2")
    machine.run("pull", second.reference)
    said = machine.run("du", "--json").object
    assert {model["name"] for model in said["models"]} == {first.reference, second.reference}
    for model in said["models"]:
        assert model["shared"] > model["exclusive"] > 0
    shared = said["models"][0]["shared"]
    assert said["used"] == shared + sum(model["exclusive"] for model in said["models"])
    assert first.reference in machine.run("du").out
