"""Putting the rooms together."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from modelmount import config, wiring
from modelmount.cache import shelf as shelves
from modelmount.content.store import Store
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.pull.resolver import Model
from modelmount.registry.credentials import Credential
from modelmount.sources.registry import RegistrySource
from modelmount.sources.throttled import ThrottledSource
from tests.conformance.blob_source import received
from tests.fakes.source import MemorySource
from tests.fakes.wire import Answer, Asked, WireServer, challenge
from tests.unit.registry.asking import BLOB, BLOB_DIGEST, BLOB_PATH


def settings(root: Path) -> config.Settings:
    return config.Settings(root=str(root))


def test_looking_makes_no_store(tmp_path: Path) -> None:
    assert shelves.existing(settings(tmp_path / "absent")) is None
    assert not (tmp_path / "absent").exists()


def test_what_exists_is_found(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    shelf = shelves.existing(settings(tmp_path / "store"))
    assert shelf is not None
    assert list(shelf.leases.walk()) == []


def test_a_node_can_be_closed_twice_and_takes_no_work_afterwards(tmp_path: Path) -> None:
    node = wiring.build(settings(tmp_path / "store"))
    node.close()
    node.close()
    assert node.puller.jobs() == []


def test_registries_can_be_asked_without_a_store(tmp_path: Path) -> None:
    remote = wiring.connect(settings(tmp_path / "store"))
    remote.close()
    remote.close()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("limit", "kind"), [(0, RegistrySource), (1_000_000, ThrottledSource)])
def test_a_limit_on_bytes_costs_nothing_where_there_is_none(tmp_path: Path, limit: int, kind: type) -> None:
    node = wiring.build(config.Settings(root=str(tmp_path / "store"), pull=config.Pull(bytes_per_second=limit)))
    model = Model(Repository("registry.example.com", "llm/tiny"), Digest.of(b"manifest"))
    assert type(node.puller._source(model, Credential.anonymous, lambda: True)) is kind
    node.close()


@pytest.mark.parametrize("named", ["registries", "a directory"])
def test_only_registries_that_an_admin_names_say_how_a_mirror_of_all_is(tmp_path: Path, named: str) -> None:
    """Whoever runs another one can make a mirror that asks it fail."""
    blob = Descriptor("application/octet-stream", BLOB_DIGEST, len(BLOB))
    with WireServer() as mirror:
        mirror.on(BLOB_PATH, Answer(502))
        text = f'[host."{mirror.url}"]\n'
        for registry in ("_default", *(["known.example.com"] if named == "a directory" else [])):
            (tmp_path / "hosts" / registry).mkdir(parents=True)
            (tmp_path / "hosts" / registry / "hosts.toml").write_text(text)
        listed = {"known.example.com": config.Registry()} if named == "registries" else {}
        node = wiring.build(
            config.Settings(root=str(tmp_path / "store"), hosts_dir=str(tmp_path / "hosts"), registries=listed)
        )
        try:
            for registry in ("strange.example.com", "strange.example.com", "known.example.com", "known.example.com"):
                origin = MemorySource(BLOB, name=registry)
                found = node.mirrors.before(origin, Repository(registry, "llm/tiny"))
                assert received(found.open(blob, 0)) == BLOB
            assert len(mirror.asked()) == 3  # the last one leaves it alone
        finally:
            node.close()


@pytest.mark.parametrize("login", ["docker_config", "header", "none"])
def test_no_login_for_a_mirror_of_all_is_for_registries_that_no_admin_names(tmp_path: Path, login: str) -> None:
    """A mirror that doesn't look which registry is meant would open its own repository of the same name."""
    blob = Descriptor("application/octet-stream", BLOB_DIGEST, len(BLOB))
    secret = "Basic " + base64.b64encode(b"node:planted-secret").decode()

    def guarded(asked: Asked) -> Answer:
        if login != "none" and asked.headers.get("authorization") != secret:
            return challenge('Basic realm="mirror"')
        return Answer(body=BLOB)

    with WireServer() as mirror:
        mirror.on(BLOB_PATH, guarded)
        text = f'[host."{mirror.url}"]\n'
        if login == "header":
            text += f'[host."{mirror.url}".header]\nauthorization = "{secret}"\n'
        (tmp_path / "hosts/_default").mkdir(parents=True)
        (tmp_path / "hosts/_default/hosts.toml").write_text(text)
        auths = {mirror.host: {"username": "node", "password": "planted-secret"}} if login == "docker_config" else {}
        (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
        node = wiring.build(
            config.Settings(
                root=str(tmp_path / "store"),
                hosts_dir=str(tmp_path / "hosts"),
                registries={"known.example.com": config.Registry()},
                auth=config.Auth(docker_config=str(tmp_path / "config.json")),
            )
        )
        try:
            for registry, of_mirror in (("strange.example.com", login == "none"), ("known.example.com", True)):
                origin = MemorySource(BLOB, name=registry)
                found = node.mirrors.before(origin, Repository(registry, "llm/tiny"))
                assert received(found.open(blob, 0)) == BLOB
                assert len(origin.opens) == (0 if of_mirror else 1)
        finally:
            node.close()
