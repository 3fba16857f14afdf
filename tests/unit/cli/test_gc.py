"""`modelmount gc`: what goes, and what it says about it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from modelmount.cache.census import Reader
from modelmount.cli import cli
from modelmount.cli.options import SIZE
from modelmount.content.store import Store
from modelmount.pull.progress import human_bytes
from tests.unit.cache.shelf import Shelf, content
from tests.unit.cli.conftest import Machine


def age(machine: Machine) -> None:
    for pattern in ("models/*", "scopes/*", "unpacked/*/*/index.json", "trees/*/tree.json"):
        for path in machine.driver.store.glob(pattern):
            os.utime(path, (1, 1))


def test_a_machine_without_a_store_has_nothing_to_free_and_gets_none(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["gc", "--all", "--json", "--root", str(tmp_path / "store")])
    assert (done.exit_code, done.output.count('"freed": 0')) == (0, 1)
    planned = CliRunner().invoke(cli, ["gc", "--all", "--dry-run", "--json", "--root", str(tmp_path / "store")])
    assert (planned.exit_code, json.loads(planned.output)["victims"]) == (0, [])
    assert not (tmp_path / "store").exists()


@pytest.mark.registry
def test_models_go_and_are_fetched_again(machine: Machine) -> None:
    pushed = machine.push()
    machine.run("pull", pushed.reference)
    assert machine.run("gc", "--all", "--json").object["result"]["models"] == []  # it was just used
    assert "says what holds the rest" in machine.run("gc", "--all").out
    age(machine)
    plan = machine.run("gc", "--all", "--dry-run", "--json").object
    assert [victim["name"] for victim in plan["victims"]] == [pushed.reference]
    assert plan["frees"] == plan["evictable"] > pushed.size
    assert pushed.reference in machine.run("gc", "--free", "1MB", "--dry-run").out
    assert len(machine.run("ls", "--json").object["models"]) == 1
    result = machine.run("gc", "--free", "1B", "--json").object["result"]
    assert (result["models"], result["freed"]) == ([pushed.reference], plan["frees"])
    assert machine.run("ls", "--json").object["models"] == []
    assert machine.run("pull", pushed.reference, "--json").objects[-1]["result"]["digest"] == pushed.digest


def test_a_dry_run_says_in_which_order_whose_and_why(tmp_path: Path) -> None:
    shelf = Shelf(Store(tmp_path / "store"))
    shelf.put("daily", {"w": content("daily", 300_000)}, idle=20 * 3600, namespace="careful")
    for n in range(4):
        shelf.put(f"junk-{n}", {"w": content(f"junk-{n}", 300_000)}, idle=7200 - n, namespace="storm")
    used = Reader(shelf.store).used_bytes()
    done = CliRunner().invoke(cli, ["gc", "--dry-run", "--all", "--root", str(shelf.store.root)])
    assert done.exit_code == 0
    heading, *rows, freed, rest = done.output.splitlines()
    assert re.split(r"  +", heading) == [
        "WOULD GO",
        "FREES",
        "UNUSED FOR",
        "SCORE",
        "NAMESPACES",
        "BEFORE OTHERS BECAUSE",
    ]
    table = [re.split(r"  +", row) for row in rows]
    assert [(cells[0].rpartition("/")[2], *cells[4:]) for cells in table] == [
        ("junk-0:v1", "storm", "above its share"),
        ("junk-1:v1", "storm", "above its share"),
        ("daily:v1", "careful", "-"),
        ("junk-2:v1", "storm", "-"),
        ("junk-3:v1", "storm", "-"),
    ]
    for _, frees, unused, score, *_ in table:
        assert re.fullmatch(r"3\d\d(\.\d)? kB", frees)
        assert re.fullmatch(r"\d+ h \d+ min", unused)
        assert int(score) > 0
    assert freed.startswith(f"{human_bytes(used)} would be freed")
    assert "held: nothing" in rest
    assert Reader(shelf.store).used_bytes() == used


def test_whoever_gets_less_than_was_wanted_is_told(tmp_path: Path) -> None:
    shelf = Shelf(Store(tmp_path / "store"))
    shelf.put("idle", {"w": content("idle", 300_000)}, idle=7200)
    held = shelf.put("held", {"w": content("held", 300_000)}, idle=7200)
    shelf.lease(held)

    def said(*arguments: str) -> str:
        return CliRunner().invoke(cli, ["gc", *arguments, "--root", str(shelf.store.root)]).stdout

    assert "less than the 1.0 GB that were wanted; `modelmount gc --all --dry-run` says" in said("--free", "1GB")
    assert shelf.present() == held.items
    assert "less than the 1 B that were wanted" in said("--free", "1B")
    shelf.put("idle", {"w": content("idle", 300_000)}, idle=7200)
    assert "wanted" not in said("--free", "1B")


def test_all_and_free_exclude_each_other(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["gc", "--all", "--free", "1GB", "--root", str(tmp_path / "s")]).exit_code == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("50GB", 50 * 10**9), ("1.5 TiB", 3 << 39), ("2k", 2000), ("7MiB", 7 << 20), ("0", 0)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1iB", "1XB", "1 2"])
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no size"):
        SIZE.convert(text, None, None)
