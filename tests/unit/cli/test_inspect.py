"""`modelmount inspect` against a real registry: manifest and config, never a weight."""

from __future__ import annotations

import json

import pytest

from tests.fakes import push
from tests.unit.cli.conftest import Machine

pytestmark = pytest.mark.registry


def test_what_a_model_is_without_a_layer_and_without_a_store(machine: Machine) -> None:
    pushed = machine.push()
    done = machine.run("inspect", pushed.reference)
    assert done.code == 0, done.err
    assert pushed.digest in done.out
    assert "model.safetensors" in done.out
    assert "tokenizer (archive)" in done.out
    assert "vocab.txt" not in done.out
    assert machine.registry.blob_gets().keys() & set(pushed.layers) == set()
    assert not machine.driver.store.exists()


def test_what_the_config_says_of_the_model_is_shown(machine: Machine) -> None:
    pusher = push.Pusher(machine.registry.host, machine.registry.connection)
    config = {"descriptor": {"name": "tiny"}, "config": {"architecture": "transformer", "paramSize": "0.1m"}}
    layer = push.Layer("application/vnd.cncf.model.weight.v1.raw", b"w", {push.FILEPATH: "model.bin"})
    content = push.Layer(push.MODELPACK_CONFIG, json.dumps(config).encode())
    pushed = pusher.artifact("llm/said", "v1", push.Artifact(content, (layer,), push.MODELPACK_ARTIFACT))
    assert "architecture  transformer" in machine.run("inspect", pushed.reference).out
    found = machine.run("inspect", pushed.reference, "--json").object
    assert found["facts"] == {"name": "tiny", "architecture": "transformer", "parameters": "0.1m"}


def test_json_has_every_layer(machine: Machine) -> None:
    pushed = machine.push()
    found = machine.run("inspect", pushed.reference, "--json").object
    assert found["digest"] == pushed.digest
    assert found["problem"] is None
    assert [layer["digest"] for layer in found["layers"]] == list(pushed.layers)
    assert sum(layer["size"] for layer in found["layers"]) == pushed.size
    assert {layer["path"]: layer["archive"] for layer in found["layers"]} == {
        "config.json": False,
        "model.safetensors": False,
        "tokenizer": True,
    }
    assert not any(layer["here"] for layer in found["layers"])


def test_what_is_here_is_known_after_a_pull_even_inside_archives(machine: Machine) -> None:
    pushed = machine.push()
    machine.run("pull", pushed.reference)
    found = machine.run("inspect", pushed.reference, "--json").object
    assert all(layer["here"] for layer in found["layers"])
    (archive,) = [layer for layer in found["layers"] if layer["archive"]]
    assert archive["files"] == [{"path": "tokenizer/vocab.txt", "size": 4}]
    assert "tokenizer/vocab.txt" in machine.run("inspect", pushed.reference).out


def test_a_look_does_not_move_what_a_tag_means_to_pods(machine: Machine) -> None:
    first = machine.push()
    machine.run("pull", first.reference)
    before = {p.name: p.read_bytes() for p in (machine.driver.store / "refs").iterdir()}
    (machine.directory / "model/config.json").write_text("{}")
    second = machine.push()
    assert machine.run("inspect", second.reference, "--json").object["digest"] == second.digest
    assert {p.name: p.read_bytes() for p in (machine.driver.store / "refs").iterdir()} == before


def test_an_index_is_followed_to_the_manifest_for_this_machine(machine: Machine) -> None:
    pushed = machine.push()
    pusher = push.Pusher(machine.registry.host, machine.registry.connection)
    index = pusher.index("llm/tiny", "all", [(pushed, {})])
    found = machine.run("inspect", index.reference, "--json").object
    assert found["index"] == index.digest
    assert found["digest"] == pushed.digest


def test_what_cannot_be_mounted_is_shown_with_the_reason(machine: Machine) -> None:
    pusher = push.Pusher(machine.registry.host, machine.registry.connection)
    layer = push.Layer("application/vnd.example.nobody.knows+xz", b"x" * 10)
    pushed = pusher.artifact(
        "llm/odd", "v1", push.Artifact(push.Layer("application/vnd.example.odd", b"{}"), (layer,), "application/odd")
    )
    done = machine.run("inspect", pushed.reference)
    assert done.code == 0, done.err
    assert "cannot be mounted: " in done.out
    assert pushed.layers[0] in done.out
    assert machine.run("inspect", pushed.reference, "--json").object["format"] is None


def test_a_missing_model_is_not_found(machine: Machine) -> None:
    done = machine.run("inspect", f"{machine.registry.host}/llm/absent:v1")
    assert done.code == 3
    assert len(done.err.splitlines()) == 1
