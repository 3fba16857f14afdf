"""Pods whose models lie in Harbor: its contract, played by `tests.fakes.harbor`, which says where it differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Node, contents, random_bytes
from tests.fakes import push
from tests.fakes.harbor import Harbor
from tests.fakes.kubelet import Pod, Volume
from tests.fakes.registry import Registry
from tests.fakes.tokens import TokenServer, User

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(300)]

LLM = {"llm/tiny": ("pull",), "cache/tiny": ("pull",)}
SYSTEM, PROJECT, OTHER = "robot$nodes", "robot$llm+pull", "robot$other+pull"
PASSWORD = "Zx7-robot-secret"
BLOCKED = "current image with 3 vulnerabilities cannot be pulled due to configured policy"
SECONDS = 100.0


@dataclass
class Place:
    """A node whose models come from Harbor."""

    node: Node
    harbor: Harbor
    tokens: TokenServer
    files: dict[str, bytes]

    def run(self, name: str, account: str | None, repository: str = "llm/tiny", tag: str = "v1") -> Pod:
        """A pod that brings this account's pull Secret."""
        if account is not None:
            auths = {self.harbor.host: {"username": account, "password": PASSWORD}}
            self.node.kubelet.secrets["default", name] = {".dockerconfigjson": json.dumps({"auths": auths})}
        volume = Volume("model", {"model": f"{self.harbor.host}/{repository}:{tag}"}, secret=name if account else None)
        return self.node.kubelet.run(Pod(name, (volume,)))

    def running(self, pod: Pod) -> dict[str, bytes]:
        """Its files, once it runs."""
        self.node.kubelet.wait_running(pod, SECONDS)
        return contents(self.node.mount(pod))

    def event(self, pod: Pod, words: str) -> str:
        """What the pod's owner reads, once it has these words."""
        return self.node.kubelet.wait_event("FailedMount", words, pod=pod, timeout=SECONDS).message


@pytest.fixture
def place(make_node: Callable[..., Node], tmp_path: Path) -> Iterator[Place]:
    users = {name: User(PASSWORD, LLM) for name in (SYSTEM, PROJECT)} | {OTHER: User(PASSWORD, {})}
    users["admin"] = User(PASSWORD)
    files = {
        "config.json": b"{}\n",
        "model.safetensors": random_bytes(3 << 20, 1),
        "b.safetensors": random_bytes(99, 2),
    }
    for name, data in files.items():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(data)
    with (
        TokenServer(tmp_path / "tokens", users=users, harbor_style=True) as tokens,
        Registry(tmp_path / "registry", token=tokens.auth) as registry,
        Harbor(registry, tokens) as harbor,
    ):
        for repository in LLM:
            scope = f"scope=repository:{repository}:pull,push"
            _, granted = tokens.answer(scope, push.basic("admin", PASSWORD))
            pusher = push.Pusher(registry.host, registry.connection, authorization=f"Bearer {granted['token']}")
            pusher.artifact(repository, "v1", push.modelpack(tmp_path / "model"))
        node = make_node(registry=registry, through=harbor, scale=0.05)
        yield Place(node, harbor, tokens, files)


@pytest.mark.parametrize("account", [SYSTEM, PROJECT])
def test_a_robot_pulls_and_harbors_log_has_its_name(place: Place, account: str) -> None:
    assert place.running(place.run("pod", account)) == place.files
    assert place.harbor.accounts == {account}


def test_each_pod_is_in_harbors_log_with_its_own_account(place: Place) -> None:
    place.running(place.run("one", SYSTEM))
    before = len(place.harbor.log)
    place.running(place.run("two", PROJECT))
    later = place.harbor.log[before:]
    assert {entry.account for entry in later} == {PROJECT}
    assert [entry.method for entry in later if "/blobs/" in entry.path] == []


@pytest.mark.parametrize("account", [OTHER, "robot$llm+none", None], ids=["another project's", "unknown", "none"])
def test_who_has_no_rights_hears_nothing_more(place: Place, account: str | None) -> None:
    place.running(place.run("first", SYSTEM))
    message = place.event(place.run("pod", account), "not found or no access")
    assert "sha256:" not in message
    assert PASSWORD not in message
    place.event(place.run("elsewhere", account, repository="llm/none"), "not found or no access")


def test_a_policys_own_words_are_in_the_pods_event_and_the_pod_starts_once_it_is_content(place: Place) -> None:
    place.running(place.run("before", SYSTEM))
    place.harbor.blocked["llm/tiny"] = BLOCKED
    pod = place.run("pod", SYSTEM)
    message = place.event(pod, "PROJECTPOLICYVIOLATION")
    assert BLOCKED in message
    assert "PermissionDenied" in message
    assert contents(place.node.mount(next(iter(place.node.kubelet.pods.values())))) == place.files  # what runs goes on
    place.harbor.blocked.clear()
    assert place.running(pod) == place.files


def test_a_policy_counts_before_any_blob_is_pulled(place: Place) -> None:
    place.harbor.blocked["llm/tiny"] = BLOCKED
    place.event(place.run("pod", SYSTEM), BLOCKED)
    assert [each for each in place.harbor.asked() if "/blobs/" in each.path] == []


def test_what_is_denied_or_missing_says_so(place: Place) -> None:
    place.harbor.denied["llm/tiny"] = "The system is in read only mode. Any modification is prohibited."
    place.event(place.run("denied", SYSTEM), "not found or no access")
    place.harbor.denied.clear()
    assert "NotFound" in place.event(place.run("missing", SYSTEM, tag="v9"), "not found or no access")


def test_tokens_that_end_in_the_middle_of_a_pull_are_fetched_anew(place: Place) -> None:
    place.harbor.expire_tokens_before_blob_request(2)
    assert place.running(place.run("pod", SYSTEM)) == place.files
    assert len([each for each in place.harbor.asked() if each.path == "/service/token"]) >= 2


def test_a_proxy_cache_that_ignores_ranges_costs_no_wrong_byte(place: Place) -> None:
    place.harbor.proxied.add("cache")
    assert place.running(place.run("pod", SYSTEM, repository="cache/tiny")) == place.files
    blobs = [each for each in place.harbor.asked() if "/blobs/" in each.path]
    assert any("range" in each.headers for each in blobs)  # and was answered with everything
