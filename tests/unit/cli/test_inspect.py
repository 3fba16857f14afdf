"""`modelmount inspect` against a real registry: manifest and config, never a weight."""

from __future__ import annotations

import contextlib
import json
import pickle

import msgspec
import pytest

from modelmount.config import Settings
from modelmount.content.store import Store
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Reference
from modelmount.policy import Rule
from modelmount.policy.signing import Signature
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential
from modelmount.signatures.finder import Finder
from tests.fakes import push, signing
from tests.unit.cli.conftest import Machine, write_model

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
    assert not any(layer["here"] or layer["kind"] for layer in found["layers"])


def test_what_is_here_is_known_after_a_pull_even_inside_archives(machine: Machine) -> None:
    pushed = machine.push()
    machine.run("pull", pushed.reference)
    found = machine.run("inspect", pushed.reference, "--json").object
    assert all(layer["here"] for layer in found["layers"])
    (archive,) = [layer for layer in found["layers"] if layer["archive"]]
    assert archive["files"] == [{"path": "tokenizer/vocab.txt", "size": 4, "kind": "text"}]
    assert "tokenizer/vocab.txt" in machine.run("inspect", pushed.reference).out


def test_kinds_of_files_are_read_from_what_is_here_and_nothing_is_fetched_for_it(machine: Machine) -> None:
    write_model(machine.directory / "model")
    (machine.directory / "model/weights.safetensors").write_bytes(pickle.dumps({"a": 1}))
    pushed = machine.push()
    machine.run("pull", pushed.reference)
    fetched = machine.registry.blob_gets()
    found = machine.run("inspect", pushed.reference, "--json").object
    kinds = {layer["path"]: layer["kind"] for layer in found["layers"]}
    assert kinds["config.json"] == "text"
    assert kinds["weights.safetensors"] == "pickle"
    assert kinds["tokenizer"] is None
    assert " pickle " in machine.run("inspect", pushed.reference).out
    after = machine.registry.blob_gets()
    assert {digest: after.get(digest) for digest in pushed.layers} == {
        digest: fetched.get(digest) for digest in pushed.layers
    }


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


def test_what_is_beside_it_is_listed_and_who_signed_it_where_that_was_checked(machine: Machine) -> None:
    pushed, key = machine.push(), signing.Key()
    attacher = signing.Attacher(push.Pusher(machine.registry.host, machine.registry.connection))
    attacher.simple(pushed, key.simple(pushed.digest, f"{pushed.host}/{pushed.repository}"))
    attacher.referrer(pushed, signing.TRIVY, signing.TRIVY, b'{"CreatedAt": "2026-11-25T10:00:00Z"}', {})
    found = machine.run("inspect", pushed.reference, "--json").object["statements"]
    assert [(each["kind"], each["signers"]) for each in found] == [("vulnerabilities", []), ("signature", [])]
    assert found[0]["made_at"] == 1795600800.0
    shown = machine.run("inspect", pushed.reference).out
    assert "2026-11-25 10:00  nobody" in shown
    assert "not checked here" in shown
    machine.run("pull", pushed.reference)
    key.write(machine.directory / "prod.pub")
    demands = (Signature(keys=[str(machine.directory / "prod.pub")]),)
    rule = Rule(name="prod", models=["*"], signatures=list(demands))
    store, reference = Store(machine.driver.store), Reference.parse(pushed.pinned)
    settings = msgspec.convert({"registries": {pushed.host: {"plain_http": True}}}, Settings)
    with contextlib.closing(Client(settings)) as client:
        Finder(store, client).require(rule, reference, Digest.parse(pushed.digest), Credential.anonymous())
    found = machine.run("inspect", pushed.reference, "--json").object["statements"]
    assert [(each["kind"], bool(each["signers"]), each["rule"]) for each in found] == [
        ("vulnerabilities", False, None),
        ("signature", True, "prod"),
    ]
    assert "key prod.pub (sha256:" in machine.run("inspect", pushed.reference).out
