"""The startup taint goes once the driver is registered, and not before."""

from __future__ import annotations

import logging

import pytest

from modelmount.kube import startup
from modelmount.kube.api import Api
from modelmount.kube.startup import StartupTaint
from tests.fakes.kube import ApiServer
from tests.unit.kube.conftest import EVENT_SECONDS, until

KEY = "modelmount.io/driver-not-ready"
NODE, CSI_NODE = "/api/v1/nodes/node1", "/apis/storage.k8s.io/v1/csinodes/node1"


@pytest.fixture
def taint(api: Api, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> StartupTaint:
    monkeypatch.setattr(startup, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(startup, "LONGEST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(startup, "CLOSE_SECONDS", EVENT_SECONDS)
    server.objects[NODE] = {
        "metadata": {"name": "node1"},
        "spec": {"taints": [{"key": KEY, "effect": "NoSchedule"}, {"key": "gpu", "effect": "NoSchedule"}]},
    }
    return StartupTaint(api, node="node1", driver="csi.modelmount.io", key=KEY)


def register(server: ApiServer) -> None:
    drivers = [{"name": "csi.modelmount.io", "nodeID": "node1"}]
    server.objects[CSI_NODE] = {"metadata": {"name": "node1"}, "spec": {"drivers": drivers}}


def keys(server: ApiServer) -> list[str]:
    return [taint["key"] for taint in server.objects[NODE]["spec"]["taints"]]


def test_it_stays_until_the_kubelet_knows_the_driver_and_is_then_left_alone(
    taint: StartupTaint, server: ApiServer
) -> None:
    with taint:
        until(lambda: server.requests.count(("GET", CSI_NODE)) >= 3)
        assert keys(server) == [KEY, "gpu"]
        register(server)
        until(lambda: keys(server) == ["gpu"])
        taint._thread.join(EVENT_SECONDS)
        assert not taint._thread.is_alive(), "once a start"


def test_without_the_right_it_is_said_once_and_done_once_it_is_there(
    taint: StartupTaint, server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    register(server)
    server.denied.add("PATCH")
    with caplog.at_level(logging.WARNING), taint:
        until(lambda: server.requests.count(("PATCH", NODE)) >= 3)
        server.denied.clear()
        until(lambda: keys(server) == ["gpu"])
    (said,) = [each.getMessage() for each in caplog.records if each.name == "modelmount.kube.startup"]
    assert "cannot PATCH" in said
    assert "startupTaint.enabled" in said


def test_a_driver_that_ends_stops_asking(taint: StartupTaint, server: ApiServer) -> None:
    with taint:
        until(lambda: bool(server.requests))
    assert not taint._thread.is_alive()
    assert keys(server) == [KEY, "gpu"]
