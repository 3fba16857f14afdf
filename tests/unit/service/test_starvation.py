"""Publishes that wait never take the last thread: shown by the order of events, not by time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import grpc
import pytest

from csi.registration import registration_pb2
from csi.v1 import csi_pb2
from tests.fakes.publisher import EVENT_SECONDS
from tests.unit.service.conftest import Door, publish_request, refusal

WAITERS = 64


def ask_everything_else(door: Door) -> None:
    """What has to be answered whatever the publishes do."""
    assert door.identity.Probe(csi_pb2.ProbeRequest(), timeout=EVENT_SECONDS).ready.value
    assert door.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=EVENT_SECONDS).name
    assert door.registration.GetInfo(registration_pb2.InfoRequest(), timeout=EVENT_SECONDS).name
    assert door.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=EVENT_SECONDS).node_id
    unpublish = csi_pb2.NodeUnpublishVolumeRequest(volume_id="gone", target_path="/pods/gone/mount")
    door.node.NodeUnpublishVolume(unpublish, timeout=EVENT_SECONDS)


@pytest.mark.parametrize("publishes", [WAITERS, 1000])
def test_with_every_place_taken_the_other_calls_are_answered(door: Door, publishes: int) -> None:
    with door.publisher.parking():
        calls = [door.node.NodePublishVolume.future(publish_request(n)) for n in range(publishes)]
        door.publisher.await_parked(WAITERS)
        ask_everything_else(door)
        assert door.publisher.parked == WAITERS  # they were answered while all of these waited
        await_ended(calls, publishes - WAITERS)
        refused = [call for call in calls if call.done()]
        assert door.publisher.parked == WAITERS
        assert len(refused) == publishes - WAITERS
        assert {call.code() for call in refused} <= {grpc.StatusCode.ABORTED}
        assert all(f"{WAITERS} volumes are being published" in (call.details() or "") for call in refused)
    codes = [call.code() for call in calls]
    assert codes.count(grpc.StatusCode.OK) == WAITERS
    assert len(door.publisher.published) == WAITERS


def await_ended(calls: Sequence[grpc.Future[csi_pb2.NodePublishVolumeResponse]], count: int) -> None:
    """Return once `count` of the calls have ended."""
    ended = threading.Semaphore(0)
    for call in calls:
        call.add_done_callback(lambda _: ended.release())
    for _ in range(count):
        assert ended.acquire(timeout=EVENT_SECONDS)


def of(namespace: str, number: int) -> csi_pb2.NodePublishVolumeRequest:
    attributes = {"model": "registry.example.com/llm/tiny:v1", "csi.storage.k8s.io/pod.namespace": namespace}
    return publish_request(number, volume_context=attributes)


def test_no_namespace_takes_the_places_of_all(door: Door) -> None:
    """However many volumes of it wait for a registry that doesn't answer; two of them don't either."""
    with door.publisher.parking():
        calls = [door.node.NodePublishVolume.future(of("team-a", n)) for n in range(100)]
        await_ended(calls, 52)
        refused = [call for call in calls if call.done()]
        assert {call.code() for call in refused} == {grpc.StatusCode.ABORTED}
        assert all("48 volumes of the namespace 'team-a'" in (call.details() or "") for call in refused)
        others = [door.node.NodePublishVolume.future(of("team-b", 100 + n)) for n in range(100)]
        await_ended(others, 88)
        last = door.node.NodePublishVolume.future(of("team-c", 200))
        door.publisher.await_parked(61)
        refused_b = [call for call in others if call.done()]
        assert all("12 volumes of the namespace 'team-b'" in (call.details() or "") for call in refused_b)
        assert not last.done()
    for call in (*(c for c in calls if c not in refused), *(c for c in others if c not in refused_b), last):
        call.result(EVENT_SECONDS)


def test_a_place_is_free_again_once_its_publish_ended(open_door: Callable[..., Door]) -> None:
    door = open_door(publish={"waiters": 1})
    with door.publisher.parking():
        first = door.node.NodePublishVolume.future(publish_request(1))
        door.publisher.await_parked(1)
        assert refusal(door.node.NodePublishVolume, publish_request(2)).code is grpc.StatusCode.ABORTED
        first.cancel()
        door.publisher.await_parked(0)
        second = door.node.NodePublishVolume.future(publish_request(2))
        door.publisher.await_parked(1)
    second.result(EVENT_SECONDS)


def test_hanging_unpublishes_do_not_keep_health_checks_from_being_answered(open_door: Callable[..., Door]) -> None:
    door = open_door(publish={"waiters": 1})
    unpublish = csi_pb2.NodeUnpublishVolumeRequest(volume_id="v", target_path="/pods/v/mount")
    with door.publisher.parking_unpublishes():
        calls = [door.node.NodeUnpublishVolume.future(unpublish) for _ in range(40)]
        door.publisher.await_unpublishing(17)  # every thread but the instant ones
        assert door.identity.Probe(csi_pb2.ProbeRequest(), timeout=EVENT_SECONDS).ready.value
        assert door.registration.GetInfo(registration_pb2.InfoRequest(), timeout=EVENT_SECONDS).name
        assert door.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest(), timeout=EVENT_SECONDS).capabilities
        assert not door.publisher.unpublished
    for call in calls:
        call.result(EVENT_SECONDS)


def test_unpublish_of_a_volume_whose_publish_waits_is_answered_and_the_publish_gives_up(door: Door) -> None:
    with door.publisher.parking():
        waiting = door.node.NodePublishVolume.future(publish_request(1))
        door.publisher.await_parked(1)
        door.node.NodeUnpublishVolume(
            csi_pb2.NodeUnpublishVolumeRequest(volume_id="volume-1", target_path="/pods/1/mount")
        )
        assert refusal(waiting.result, EVENT_SECONDS).code is grpc.StatusCode.CANCELLED
    assert not door.publisher.published
