from __future__ import annotations

import logging
import socket
import time
from contextlib import AbstractContextManager

import grpc
import pytest
from prometheus_client import REGISTRY

from csi.v1 import csi_pb2
from modelmount import errors, telemetry
from modelmount.service import interceptors, listener
from tests.fakes.publisher import EVENT_SECONDS
from tests.unit.service.conftest import Door, eventually, publish_request, raw, refusal


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == interceptors.__name__]


def test_a_deadline_of_the_client_reaches_the_publisher_on_the_monotonic_clock(door: Door) -> None:
    before = time.monotonic()
    door.node.NodePublishVolume(publish_request(), timeout=1000)
    deadline = door.publisher.calls[0].deadline
    assert deadline is not None
    assert before + 900 < deadline < time.monotonic() + 1100


def test_a_call_without_a_deadline_has_none(door: Door) -> None:
    door.node.NodePublishVolume(publish_request())
    assert door.publisher.calls[0].deadline is None


def test_a_publish_answers_with_progress_before_its_deadline(door: Door) -> None:
    with door.publisher.parking():
        refused = refusal(lambda: door.node.NodePublishVolume(publish_request(), timeout=2))
    assert refused.code is grpc.StatusCode.ABORTED
    assert refused.message == "pulling registry.example.com/llm/tiny:v1: 43 percent"


def test_a_client_that_cancels_is_noticed_by_the_publish_that_waits(door: Door) -> None:
    with door.publisher.parking():
        call = door.node.NodePublishVolume.future(publish_request())
        door.publisher.await_parked(1)
        assert not door.publisher.calls[0].cancelled.is_set()
        call.cancel()
        assert door.publisher.calls[0].cancelled.wait(EVENT_SECONDS)
        door.publisher.await_parked(0)
    assert not door.publisher.published


def test_a_client_that_disconnects_is_noticed_too(door: Door) -> None:
    with door.publisher.parking():
        call = door.node.NodePublishVolume.future(publish_request())
        door.publisher.await_parked(1)
        door.channel.close()
        assert door.publisher.calls[0].cancelled.wait(EVENT_SECONDS)
    assert call.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("registry.example.com/llm/x: not found, or no access"), grpc.StatusCode.NOT_FOUND),
        (errors.Unauthenticated("a credential is needed"), grpc.StatusCode.UNAUTHENTICATED),
        (errors.Forbidden("no access"), grpc.StatusCode.PERMISSION_DENIED),
        (errors.Unavailable("registry.example.com: connection refused", retry_after=3), grpc.StatusCode.UNAVAILABLE),
        (errors.NoSpace("140 GB needed, 3 GB free"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.BadArtifact("the manifest isn't JSON"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.Internal("mount failed: EPERM"), grpc.StatusCode.INTERNAL),
    ],
)
def test_an_error_of_the_publisher_arrives_as_its_code_and_sentence_without_details(
    door: Door, error: errors.ModelMountError, code: grpc.StatusCode
) -> None:
    door.publisher.fail(error)
    refused = refusal(door.node.NodePublishVolume, publish_request())
    assert refused.code is code
    assert refused.message == error.message
    assert "grpc-status-details-bin" not in refused.metadata


def test_an_unexpected_error_is_internal_and_its_traceback_is_only_in_the_log(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.publisher.fail(KeyError("an inner secret"))
    with caplog.at_level(logging.DEBUG):
        refused = refusal(door.node.NodePublishVolume, publish_request())
        eventually(lambda: any(r.levelno == logging.ERROR for r in records(caplog)))
    details = refused.message
    assert refused.code is grpc.StatusCode.INTERNAL
    assert "inner secret" not in details
    (record,) = [r for r in records(caplog) if r.levelno == logging.ERROR]
    error_id = record.__dict__["fields"]["error_id"]
    assert error_id in details
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


def test_no_secret_of_a_request_is_logged_at_any_level(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    request = publish_request(
        secrets={"password": "hunter2"},
        volume_context={"csi.storage.k8s.io/serviceAccount.tokens": "hunter3", "token": "hunter4"},
    )
    with caplog.at_level(logging.DEBUG):
        door.node.NodePublishVolume(request)
        door.publisher.fail(ValueError("oops"))
        refusal(door.node.NodePublishVolume, request)
        eventually(lambda: any(r.levelno == logging.ERROR for r in records(caplog)))
    logged = "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "registry.example.com/llm/tiny:v1" in logged
    assert "hunter" not in logged


def test_every_call_is_counted_once_with_its_code(door: Door) -> None:
    door.node.NodePublishVolume(publish_request())
    refusal(door.node.NodePublishVolume, csi_pb2.NodePublishVolumeRequest())
    eventually(lambda: len([o for o in door.observed if o[0] == "NodePublishVolume"]) == 2)
    assert [o for o in door.observed if o[0] == "NodePublishVolume"] == [
        ("NodePublishVolume", "OK"),
        ("NodePublishVolume", "INVALID_ARGUMENT"),
    ]


def test_the_usual_observer_feeds_the_metrics_of_the_process() -> None:
    labels = {"method": "Probe", "code": "OK"}
    before = REGISTRY.get_sample_value("modelmount_rpc_total", labels) or 0
    interceptors.record("Probe", "OK", 0.001)
    assert REGISTRY.get_sample_value("modelmount_rpc_total", labels) == before + 1


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7fshort"])
def test_a_request_that_is_no_message_or_not_utf8_is_an_invalid_argument(door: Door, data: bytes) -> None:
    call = raw(door.channel, "/csi.v1.Node/NodePublishVolume")
    refused = refusal(call, data)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "NodePublishVolumeRequest" in refused.message
    assert door.publisher.calls == []


def test_a_request_over_4_mib_is_refused_and_the_next_one_served(door: Door) -> None:
    call = raw(door.channel, "/csi.v1.Node/NodePublishVolume")
    assert refusal(call, b"\0" * (listener.MESSAGE_BYTES + 1)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    door.node.NodePublishVolume(publish_request())


def test_bytes_that_are_not_http2_close_their_connection_and_nothing_else(door: Door) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(EVENT_SECONDS)
        stranger.connect(str(door.settings.socket_path))
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        while stranger.recv(4096):
            pass
    door.node.NodePublishVolume(publish_request())


@pytest.mark.parametrize("authority", ["localhost", "%2Ftmp%2Fx.sock", "/tmp/x.sock", "x"])
def test_every_authority_that_kubelets_send_is_accepted(door: Door, authority: str) -> None:
    with grpc.insecure_channel(f"unix:{door.settings.socket_path}", [("grpc.default_authority", authority)]) as channel:
        raw(channel, "/csi.v1.Identity/Probe")(b"", timeout=EVENT_SECONDS)


def test_a_message_of_a_megabyte_from_below_still_arrives_with_its_code(door: Door) -> None:
    door.publisher.fail(errors.BadArtifact("bad name: " + "é\n" * (1 << 20)))
    refused = refusal(door.node.NodePublishVolume, publish_request())
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.message.startswith("bad name: é\\né")


def test_the_callers_volume_and_pod_are_on_the_log_lines_of_a_call(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    original = telemetry.context

    def spy(**fields: str) -> AbstractContextManager[None]:
        seen.append(fields)
        return original(**fields)

    monkeypatch.setattr(telemetry, "context", spy)
    context = {"csi.storage.k8s.io/pod.name": "vllm-0", "csi.storage.k8s.io/pod.namespace": "llm"}
    door.node.NodePublishVolume(publish_request(volume_context=context))
    assert {"method": "NodePublishVolume", "volume": "volume-0", "target": "/pods/0/mount", "pod": "llm/vllm-0"} in seen
