"""What pods are told in their events, by real publishes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmount.errors import Forbidden, NotFound, Pending
from modelmount.kube.notes import Note, Pod
from modelmount.pull.progress import human_bytes
from modelmount.volumes.publisher import Publisher
from tests.unit.volumes.conftest import EVENT_SECONDS, Call, Node, Request

pytestmark = [pytest.mark.mount, pytest.mark.registry]

KEY = "csi.storage.k8s.io/pod."


class Told:
    """A publisher whose news are kept."""

    def __init__(self, node: Node) -> None:
        self.node, self.notes = node, list[Note]()
        rooms = (node.store, node.resolver, node.puller, node.credentials, node.settings)
        self.publisher = Publisher(*rooms, tell=self.notes.append)

    def publish(self, pod: Pod, model: str, *, volume: str = "volume", seconds: float = EVENT_SECONDS) -> Path:
        target = self.node.target(f"{pod.uid}-{volume}")
        who = {KEY + "namespace": pod.namespace, KEY + "name": pod.name, KEY + "uid": pod.uid}
        request = Request(f"{volume}-{pod.uid}", str(target), {"model": model, **who}, {})
        self.publisher.publish(request, Call(time.monotonic() + seconds))
        return target


@pytest.fixture
def told(node: Node) -> Told:
    return Told(node)


FIRST, SECOND = Pod("a", "first", "uid-1"), Pod("b", "second", "uid-2")


def test_who_waits_for_a_pull_hears_of_it_and_who_comes_later_does_not(node: Node, told: Told) -> None:
    pushed = node.push()
    target = told.publish(FIRST, pushed.reference)
    lease = node.lease(target, "volume-uid-1")
    size = human_bytes(lease.bytes)
    assert Pod(lease.namespace, lease.pod, lease.pod_uid) == FIRST  # for who has to tell the pod later
    told.publish(SECOND, pushed.reference)
    assert [(note.pod, note.kind, note.reason) for note in told.notes] == [
        (FIRST, "Normal", "ModelPulling"),
        (FIRST, "Normal", "ModelPulled"),
        (SECOND, "Normal", "ModelCached"),
    ]
    called = f"{pushed.reference} ({pushed.digest})"
    assert told.notes[0].message == f"pulling {called}"
    assert re.fullmatch(rf"pulled {re.escape(called)}: {re.escape(size)} in \d+ s", told.notes[1].message)
    assert told.notes[2].message == f"{called} is on this node already"


def test_a_pull_that_outlasts_its_call_is_told_as_one(node: Node, told: Told) -> None:
    pushed = node.push()
    node.gate.clear()
    for _ in range(3):
        with pytest.raises(Pending):
            told.publish(FIRST, pushed.reference, seconds=0.2)
    node.gate.set()
    told.publish(FIRST, pushed.reference)
    assert len({note for note in told.notes if note.reason == "ModelPulling"}) == 1
    assert [note.reason for note in told.notes if note.reason != "ModelPulling"] == ["ModelPulled"]


def test_a_name_with_the_digest_in_it_is_not_followed_by_it(node: Node, told: Told) -> None:
    pushed = node.push()
    reference = f"{pushed.reference.rpartition(':')[0]}@{pushed.digest}"
    told.publish(FIRST, reference)
    assert told.notes[0].message == f"pulling {reference}"


def test_what_stands_is_no_news(node: Node, told: Told) -> None:
    pushed = node.push()
    told.publish(FIRST, pushed.reference)
    told.notes.clear()
    told.publish(FIRST, pushed.reference)  # as a restarted kubelet does
    node.reboot()
    told = Told(node)
    told.publish(FIRST, pushed.reference)
    assert told.notes == []


def test_a_refusal_names_the_rule(make_node: Callable[..., Node], tmp_path: Path) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text('[default]\n[[rule]]\nname = "no strangers"\nmodels = ["*"]\nnamespaces = ["b"]\nallow = false\n')
    node = make_node(policy_file=str(rules))
    told, pushed = Told(node), node.push()
    told.publish(FIRST, pushed.reference)
    told.notes.clear()
    with pytest.raises(NotFound) as absent:
        told.publish(FIRST, f"{node.registry.host}/llm/none:v1", volume="other")
    with pytest.raises(Forbidden) as refused:
        told.publish(SECOND, pushed.reference)
    assert told.notes == [
        Note(FIRST, "Warning", "ModelRefused", absent.value.message),
        Note(SECOND, "Warning", "ModelRefused", refused.value.message),
    ]
    assert "rule 'no strangers' of this node's policy forbids it" in refused.value.message


def test_without_a_pod_nobody_is_told(node: Node, told: Told) -> None:
    pushed = node.push()
    request = Request("volume", str(node.target()), {"model": pushed.reference}, {})
    told.publisher.publish(request, Call(time.monotonic() + EVENT_SECONDS))
    assert told.notes == []
