"""`modelmount ls`: what is on this node."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from modelmount.cli import cli
from modelmount.content.store import Store
from tests.unit.cache.shelf import Shelf, content
from tests.unit.cli.conftest import LARGE, Machine


@pytest.mark.registry
def test_a_machine_without_a_store_has_no_models_and_gets_none(machine: Machine) -> None:
    done = machine.run("ls")
    assert (done.code, done.out) == (0, "")
    assert "`modelmount pull`" in done.err
    assert machine.run("ls", "--json").object == {"root": str(machine.driver.store), "models": []}
    assert not machine.driver.store.exists()


@pytest.mark.registry
def test_pulled_models_with_their_references(machine: Machine) -> None:
    first = machine.push(tag="v1")
    machine.push(tag="latest")
    machine.run("pull", first.reference)
    machine.run("pull", f"{first.host}/llm/tiny")
    changed = '{"model_type": "mamba"}'
    (machine.directory / "model/config.json").write_text(changed)
    second = machine.push(tag="v2")
    machine.run("pull", second.reference)
    newest, oldest = machine.run("ls", "--json").object["models"]
    assert newest["digest"] == second.digest
    assert oldest["digest"] == first.digest
    assert oldest["references"] == [f"{first.host}/llm/tiny:latest", first.reference]
    assert (oldest["complete"], oldest["files"], oldest["in_use"]) == (True, 3, [])
    assert newest["shared"] == oldest["shared"] >= LARGE - LARGE % 256  # the weights and the packed directory
    assert newest["exclusive"] > 0 < oldest["exclusive"]
    assert (newest["sources"], oldest["sources"]) == ({first.host: len(changed)}, {first.host: first.size})
    heading, *rows = machine.run("ls").out.splitlines()
    assert heading.split() == [
        *("REFERENCE", "DIGEST", "SIZE", "SHARED", "FILES", "LAST", "USE", "SOURCE", "IN", "USE", "BY")
    ]
    assert len(rows) == 3
    assert second.digest[:19] in rows[0]
    assert rows[0][heading.index("SOURCE") :].startswith(f"{first.host} ")


def test_who_holds_a_model_is_named_as_an_admin_looks_for_it(tmp_path: Path) -> None:
    shelf = Shelf(Store(tmp_path / "store"))
    made = shelf.put("model", {"w": content("w", 99)})
    named = shelf.lease(made, "named", namespace="prod")
    shelf.leases.write(msgspec.structs.replace(named, pod="llm-0"))
    shelf.lease(made, "adopted")
    shelf.lease(made, "by-hand", owner="cli")
    done = CliRunner().invoke(cli, ["ls", "--root", str(shelf.store.root)])
    heading, *rows = done.stdout.splitlines()
    users = {row[heading.index("IN USE BY") :] for row in rows}
    assert users == {"pod prod/llm-0", "pod pod", "/var/lib/kubelet/pods/by-hand/mount"}
    plain = CliRunner().invoke(cli, ["ls", "--json", "--root", str(shelf.store.root)])
    (model,) = json.loads(plain.stdout)["models"]
    assert {(use["namespace"], use["pod"], use["pod_uid"]) for use in model["in_use"]} == {
        ("prod", "llm-0", "pod"),
        (None, None, "pod"),
    }


@pytest.mark.registry
def test_a_model_whose_pull_failed_is_incomplete(machine: Machine) -> None:
    pushed = machine.push()
    machine.registry.blob_file(pushed.layers[1]).write_bytes(b"short")
    assert machine.run("pull", pushed.reference).code != 0
    (model,) = machine.run("ls", "--json").object["models"]
    assert (model["complete"], model["files"], model["bytes"]) == (False, None, pushed.size)
    assert "INCOMPLETE" in machine.run("ls").out
