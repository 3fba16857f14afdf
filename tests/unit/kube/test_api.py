"""The client: who it is, what it asks, and what it makes of answers."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from modelmount.errors import Forbidden, InvalidRequest, NotFound, Precondition, Unavailable
from modelmount.kube import account
from modelmount.kube.api import Api
from modelmount.kube.notes import Note, Pod
from tests.fakes.kube import ApiServer

NODE = "/api/v1/nodes/node1"
OURS = {"key": "modelmount.io/not-ready", "effect": "NoSchedule"}
OTHER = {"key": "gpu", "value": "yes", "effect": "NoExecute"}


def node(*taints: dict[str, str]) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "spec": {"taints": list(taints)}}


def test_outside_of_a_pod_and_without_a_token_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Precondition, match="KUBERNETES_SERVICE_HOST"):
        account.find(str(tmp_path), {})
    with pytest.raises(Precondition, match="automountServiceAccountToken"):
        account.find(str(tmp_path), {"KUBERNETES_SERVICE_HOST": "10.96.0.1"})


def test_an_address_of_version_6_becomes_a_url(tmp_path: Path) -> None:
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text("x")
    found = account.find(str(tmp_path), {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"})
    assert found.server == "https://[fd00::1]:443"
    with pytest.raises(Precondition, match="can't be used"):
        Api(found)


def test_a_renewed_token_is_read_again(server: ApiServer, api: Api) -> None:
    server.objects["/api/v1/namespaces/a/persistentvolumeclaims/c"] = {
        "metadata": {"name": "c", "annotations": {"modelmount.io/model": "x"}},
        "spec": {},
    }
    assert api.claim_annotations("a", "c") == {"modelmount.io/model": "x"}
    server.token("second")
    assert api.claim_annotations("a", "c") == {"modelmount.io/model": "x"}
    assert len(server.requests) == 3


def test_secrets_of_a_service_account(server: ApiServer, api: Api) -> None:
    server.objects["/api/v1/namespaces/a/serviceaccounts/default"] = {
        "metadata": {"name": "default"},
        "imagePullSecrets": [{"name": "one"}, {"name": "two"}],
    }
    data = {".dockerconfigjson": base64.b64encode(b"{}").decode(), "binary": base64.b64encode(b"\xff\xfe").decode()}
    server.objects["/api/v1/namespaces/a/secrets/one"] = {"metadata": {"name": "one"}, "data": data}
    assert api.pull_secrets("a", "default") == ("one", "two")
    assert api.secret("a", "one") == {".dockerconfigjson": "{}"}
    with pytest.raises(NotFound):
        api.secret("a", "two")


def test_a_registered_driver(server: ApiServer, api: Api) -> None:
    path = "/apis/storage.k8s.io/v1/csinodes/node1"
    server.objects[path] = {"metadata": {"name": "node1"}, "spec": {"drivers": [{"name": "other", "nodeID": "node1"}]}}
    assert not api.is_registered("node1", "csi.modelmount.io")
    server.objects[path]["spec"]["drivers"].append({"name": "csi.modelmount.io", "nodeID": "node1"})
    assert api.is_registered("node1", "csi.modelmount.io")


def test_a_taint_goes_and_others_stay(server: ApiServer, api: Api) -> None:
    server.objects[NODE] = node(OTHER, OURS, {**OURS, "effect": "NoExecute"})
    assert api.remove_taint("node1", OURS["key"])
    assert server.objects[NODE]["spec"]["taints"] == [OTHER]
    assert not api.remove_taint("node1", OURS["key"])
    assert [method for method, _ in server.requests] == ["GET", "PATCH", "GET"]


def test_a_taint_that_somebody_adds_meanwhile_is_not_lost(
    server: ApiServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.objects[NODE] = node(OURS)
    answer = server.answer

    def meanwhile(method: str, *rest: object) -> tuple[int, dict[str, object]]:
        if method == "PATCH":
            server.objects[NODE] = node(OURS, OTHER)
        return answer(method, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(server, "answer", meanwhile)
        with pytest.raises(Unavailable):
            api.remove_taint("node1", OURS["key"])
    assert server.objects[NODE] == node(OURS, OTHER)
    assert api.remove_taint("node1", OURS["key"])
    assert server.objects[NODE] == node(OTHER)


def test_what_the_account_may_not_do_is_named(server: ApiServer, api: Api) -> None:
    server.denied.add("GET")
    with pytest.raises(Forbidden, match="reading claim a/c: forbidden: User"):
        api.claim_annotations("a", "c")


def test_a_namespace_that_is_going_is_no_matter_of_rights(
    server: ApiServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = 'events "x" is forbidden: unable to create new content in namespace a because it is being terminated'
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": said, "code": 403}
    monkeypatch.setattr(server, "answer", lambda *_: (403, status))
    with pytest.raises(NotFound):
        api.create_event(Note(Pod("a", "b", "c"), "Normal", "ModelPulled", "text"), "x", "d", "e")


def test_an_answer_that_makes_no_sense_may_pass(server: ApiServer, api: Api) -> None:
    server.broken = 1
    with pytest.raises(Unavailable):
        api.claim_annotations("a", "c")


@pytest.mark.parametrize("name", ["", "a/../../b", "a/b", "..", "a?b", "a%2fb", "A", "a\n"])
def test_a_name_never_becomes_another_path(server: ApiServer, api: Api, name: str) -> None:
    for ask in (api.claim_annotations, api.pull_secrets, api.secret):
        with pytest.raises(InvalidRequest):
            ask("namespace", name)
        with pytest.raises(InvalidRequest):
            ask(name, "name")
    assert server.requests == []


def test_an_api_server_that_is_gone_is_trouble_that_may_pass(tmp_path: Path) -> None:
    with ApiServer(tmp_path / "account") as server:
        found = account.find(str(server.directory), server.environment)
    gone = Api(found)
    with pytest.raises(Unavailable, match="can't be asked"):
        gone.claim_annotations("a", "c")
    gone.close()
