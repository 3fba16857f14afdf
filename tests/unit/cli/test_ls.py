"""`modelmount ls`: what is on this node."""

from __future__ import annotations

import pytest

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


@pytest.mark.registry
def test_a_model_whose_pull_failed_is_incomplete(machine: Machine) -> None:
    pushed = machine.push()
    machine.registry.blob_file(pushed.layers[1]).write_bytes(b"short")
    assert machine.run("pull", pushed.reference).code != 0
    (model,) = machine.run("ls", "--json").object["models"]
    assert (model["complete"], model["files"], model["bytes"]) == (False, None, pushed.size)
    assert "INCOMPLETE" in machine.run("ls").out
