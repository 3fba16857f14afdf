from __future__ import annotations

import threading

import grpc

from csi.registration import registration_pb2
from csi.v1 import csi_pb2
from tests.fakes.publisher import EVENT_SECONDS
from tests.unit.service.conftest import Door, eventually, publish_request, refusal


def stopping(door: Door, grace_seconds: float = EVENT_SECONDS) -> threading.Thread:
    thread = threading.Thread(target=door.server.stop, args=(grace_seconds,))
    thread.start()
    return thread


def refuses_publishes(door: Door) -> bool:
    return refusal(door.node.NodePublishVolume, publish_request(99)).code is grpc.StatusCode.UNAVAILABLE


def test_waiting_publishes_end_with_aborted_and_what_was_mounted_stays(door: Door) -> None:
    door.node.NodePublishVolume(publish_request(1))
    with door.publisher.parking():
        waiting = [door.node.NodePublishVolume.future(publish_request(n)) for n in (2, 3)]
        door.publisher.await_parked(2)
        door.server.stop(EVENT_SECONDS)
        for call in waiting:
            refused = refusal(call.result, EVENT_SECONDS)
            assert refused.code is grpc.StatusCode.ABORTED
            assert "restarting" in refused.message
    assert list(door.publisher.published) == ["/pods/1/mount"]


def test_while_a_publish_ends_slowly_no_other_begins_and_unpublish_and_probe_are_served(door: Door) -> None:
    with door.publisher.parking(stubborn=True):
        slow = door.node.NodePublishVolume.future(publish_request(1))
        door.publisher.await_parked(1)
        end = stopping(door)
        assert door.publisher.calls[0].cancelled.wait(EVENT_SECONDS)
        assert refuses_publishes(door)
        unpublish = csi_pb2.NodeUnpublishVolumeRequest(volume_id="v", target_path="/pods/v/mount")
        door.node.NodeUnpublishVolume(unpublish, timeout=EVENT_SECONDS)
        assert door.identity.Probe(csi_pb2.ProbeRequest(), timeout=EVENT_SECONDS).ready.value
        assert door.registration.GetInfo(registration_pb2.InfoRequest(), timeout=EVENT_SECONDS).name
        assert end.is_alive()
    slow.result(EVENT_SECONDS)  # it was in time, so that it counts
    end.join(EVENT_SECONDS)
    assert not door.settings.socket_path.exists()
    assert not door.registration_socket.exists()


def test_an_unpublish_under_way_is_finished_within_the_grace(door: Door) -> None:
    with door.publisher.parking_unpublishes():
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id="v", target_path="/pods/v/mount")
        slow = door.node.NodeUnpublishVolume.future(request)
        door.publisher.await_unpublishing(1)
        end = stopping(door)
        eventually(lambda: not door.settings.socket_path.exists())
    assert slow.result(EVENT_SECONDS) is not None
    end.join(EVENT_SECONDS)
    assert door.publisher.unpublished


def test_what_never_ends_is_cut_off_after_the_grace(door: Door) -> None:
    with door.publisher.parking(stubborn=True):
        stuck = door.node.NodePublishVolume.future(publish_request(1))
        door.publisher.await_parked(1)
        door.server.stop(0.05)
        assert refusal(stuck.result, EVENT_SECONDS).code in (
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.UNAVAILABLE,
        )


def test_stopping_twice_is_fine(door: Door) -> None:
    door.server.stop(EVENT_SECONDS)
    door.server.stop(EVENT_SECONDS)


def test_a_server_can_be_followed_by_another_on_the_same_path(door: Door) -> None:
    door.server.stop(EVENT_SECONDS)
    assert not door.settings.socket_path.exists()
