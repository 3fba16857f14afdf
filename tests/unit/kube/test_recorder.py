"""Events: what is written, how often, and that nobody waits for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from modelmount import telemetry
from modelmount.kube import recorder as recorders
from modelmount.kube.api import Api
from modelmount.kube.notes import Note, Pod
from modelmount.kube.recorder import BURST, REFILL_SECONDS, Recorder
from tests.fakes.kube import ApiServer
from tests.unit.kube.conftest import EVENT_SECONDS, until

POD = Pod("team-a", "llm-0", "5d7f3c1e-0000")
WAITING = 20
EVENTS = "/api/v1/namespaces/team-a/events"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setattr(recorders, "WAITING", WAITING)
    monkeypatch.setattr(recorders, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(recorders, "CLOSE_SECONDS", EVENT_SECONDS)
    with Recorder(api, component="csi.modelmount.io", node="node1", clock=clock) as started:
        yield started


def normal(message: str, pod: Pod = POD) -> Note:
    return Note(pod, "Normal", "ModelPulled", message)


def warning(message: str, pod: Pod = POD) -> Note:
    return Note(pod, "Warning", "ModelRefused", message)


def tell(recorder: Recorder, note: Note) -> None:
    """Once there is room for it."""
    until(lambda: not recorder._notes.full())
    recorder.tell(note)


def counted(result: str) -> float:
    return float(telemetry.events_total.labels(result)._value.get())


def messages(server: ApiServer) -> list[str]:
    return [event["message"] for event in server.events]


def test_an_event_names_its_pod_and_who_tells(server: ApiServer, recorder: Recorder) -> None:
    recorder.tell(normal("pulled it"))
    until(lambda: len(server.events) == 1)
    (event,) = server.events
    assert event["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "team-a", "name": "llm-0", "uid": "5d7f3c1e-0000",
    }  # fmt: skip
    told = {key: event[key] for key in ("type", "reason", "message", "count")}
    assert told == {"type": "Normal", "reason": "ModelPulled", "message": "pulled it", "count": 1}
    assert event["source"] == {"component": "csi.modelmount.io", "host": "node1"}
    assert event["metadata"]["namespace"] == "team-a"
    assert event["metadata"]["name"].startswith("llm-0.")
    assert event["firstTimestamp"] == event["lastTimestamp"]
    assert server.requests == [("POST", EVENTS)]


def test_a_warning_again_is_counted_and_other_news_is_told_once(server: ApiServer, recorder: Recorder) -> None:
    for _ in range(3):
        recorder.tell(warning("no"))
        recorder.tell(normal("pulling"))
    recorder.tell(normal("the end"))
    until(lambda: "the end" in messages(server))
    assert {event["message"]: event["count"] for event in server.events} == {"no": 3, "pulling": 1, "the end": 1}
    assert [method for method, _ in server.requests] == ["POST", "POST", "PATCH", "PATCH", "POST"]


def test_a_warning_that_the_cluster_forgot_is_told_anew(server: ApiServer, recorder: Recorder) -> None:
    recorder.tell(warning("no"))
    until(lambda: len(server.events) == 1)
    server.objects.clear()
    recorder.tell(warning("no"))
    until(lambda: len(server.events) == 1)
    assert server.events[0]["count"] == 1


def test_a_pod_that_floods_is_limited_and_others_are_not(server: ApiServer, recorder: Recorder, clock: Clock) -> None:
    before = counted("limited")
    for number in range(BURST + 10):
        tell(recorder, warning(f"no {number}"))
    tell(recorder, normal("of another", Pod("team-a", "quiet", "other")))
    until(lambda: "of another" in messages(server))
    assert len(server.events) == BURST + 1
    assert counted("limited") - before == 10
    clock.now += REFILL_SECONDS
    tell(recorder, warning("again"))
    tell(recorder, warning("and again"))
    tell(recorder, normal("the end", Pod("team-a", "quiet", "other")))
    until(lambda: "the end" in messages(server))
    assert "again" in messages(server)
    assert "and again" not in messages(server)


def test_what_finds_no_place_is_dropped_and_counted_and_nobody_waits(server: ApiServer, recorder: Recorder) -> None:
    before = counted("dropped")
    with server.silent():
        recorder.tell(normal("first"))
        until(lambda: bool(server.requests))  # the thread is inside it
        for number in range(WAITING + 7):
            recorder.tell(normal(f"news {number}", Pod("team-a", f"pod-{number}", f"uid-{number}")))
        assert counted("dropped") - before == 7
    until(lambda: len(server.events) == WAITING + 1)


def test_without_the_right_it_is_said_once_and_later_events_are_written(
    server: ApiServer, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    before = counted("refused")
    server.denied.add("POST")
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            recorder.tell(warning(f"no {number}"))
        until(lambda: counted("refused") - before == 3)
    (said,) = [each.getMessage() for each in caplog.records if each.name == "modelmount.kube.recorder"]
    assert "cannot POST" in said
    assert "create and patch events" in said
    server.denied.clear()
    recorder.tell(warning("now"))
    until(lambda: messages(server) == ["now"])


def test_an_event_outlasts_trouble_that_passes(server: ApiServer, recorder: Recorder) -> None:
    server.broken = 2
    recorder.tell(normal("news"))
    until(lambda: counted("written") > 0 and not server.broken and len(server.requests) == 3)
    assert set(messages(server)) == {"news"}


def test_control_characters_and_length_are_kept_off_terminals(server: ApiServer, recorder: Recorder) -> None:
    recorder.tell(warning("a\x1b[31m\nb" + "x" * 5000))
    until(lambda: len(server.events) == 1)
    (message,) = messages(server)
    assert message.startswith("a\\x1b[31m\\nbxxx")
    assert len(message.encode()) <= 1024
