"""`modelmount verify` and `du`: what is bad, and what takes how much."""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from modelmount.cli import cli
from modelmount.content.store import Store
from modelmount.oci.digest import Digest
from modelmount.system import disk
from tests.fakes import push
from tests.unit.cache.shelf import Shelf, content
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


def test_a_machine_without_a_store_has_nothing_bad_and_no_model_either(tmp_path: Path) -> None:
    root = tmp_path / "store"
    assert CliRunner().invoke(cli, ["verify", "--root", str(root)]).exit_code == 0
    named = CliRunner().invoke(cli, ["verify", "registry.example.com/llm/other:v1", "--root", str(root)])
    assert (named.exit_code, "is not on this node" in named.stderr) == (3, True)
    assert not root.exists()


def test_each_kind_of_trouble_has_a_bit_of_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(Store(tmp_path / "store"))
    made = shelf.put("model", {"bad": content("bad", 5000), "worse": content("worse", 5000)})
    bad, worse = (shelf.store.blob_path(Digest.of(made.files[name])) for name in ("bad", "worse"))
    damage(bad)
    real = disk.read_past_cache

    def read(path: Path, buffer: mmap.mmap) -> Iterator[memoryview]:
        if path == worse:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, buffer)

    monkeypatch.setattr(disk, "read_past_cache", read)

    def verify(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = CliRunner().invoke(cli, ["verify", "--json", *arguments, "--root", str(shelf.store.root)])
        return done.exit_code, json.loads(done.stdout)["result"]

    code, said = verify("--report-only")
    assert code == 16 | 32
    assert {each["item"].rpartition("/")[2]: each["result"] for each in said["bad"]} == {
        bad.name: "mismatch",
        worse.name: "unreadable",
    }
    assert bad.exists()
    assert verify()[0] == 16 | 32
    assert not bad.exists()
    assert verify()[0] == 32  # what can't be read stays where it is
    assert worse.exists()


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
