"""What surrounds every call: parsing, the caller's patience, the log line, the metrics, and the answer to errors.

These are not `grpc.ServerInterceptor`s: one of those wraps the finished handler, loses the thread pool named on it, and
never sees a request that can't be parsed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from modelmount import errors, telemetry
from modelmount.service import ports, redact, status

log = logging.getLogger(__name__)

Req = TypeVar("Req", bound=Message)
Behavior = Callable[[Req, ports.Call], Message]
Observe = Callable[[str, str, float], None]
"""Called once an answered call: method, name of the code, seconds."""

_QUIET = frozenset({grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNIMPLEMENTED})
_FOREVER_SECONDS = 1e9


def record(method: str, code: str, seconds: float) -> None:
    """The usual `Observe`: into the process's metrics."""
    telemetry.rpc_total.labels(method, code).inc()
    telemetry.rpc_seconds.labels(method).observe(seconds)


class Surrounded(Generic[Req]):
    """A behaviour as gRPC calls it: bytes in, bytes out. Never raises but by aborting the call; callable from many
    threads.

    `level` is the severity of a call that went well.
    """

    def __init__(
        self,
        method: str,
        request: type[Req],
        behavior: Behavior[Req],
        *,
        observe: Observe = record,
        level: int = logging.DEBUG,
    ) -> None:
        self._method = method
        self._request = request
        self._behavior = behavior
        self._observe = observe
        self._level = level

    def __call__(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer one call."""
        started = time.monotonic()
        call = call_of(context)
        try:
            request = self._request.FromString(data)
        except DecodeError:
            refusal = errors.InvalidRequest(
                f"the request isn't a valid {self._request.DESCRIPTOR.name} message; is a string in it not UTF-8?"
            )
            self._fail(context, refusal, started)
        with telemetry.context(**_fields(self._method, request)):
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s called", self._method, extra={"fields": {"request": redact.request(request)}})
            try:
                response = self._behavior(request, call).SerializeToString()
            except Exception as e:  # noqa: BLE001 - the boundary: whatever it is becomes a code
                self._fail(context, e, started)
            self._done(started, grpc.StatusCode.OK)
            return response

    def _fail(self, context: grpc.ServicerContext, error: Exception, started: float) -> NoReturn:
        answer = status.of(error)
        self._done(started, answer.code, answer, error)
        context.abort(answer.code, answer.message)

    def _done(
        self, started: float, code: grpc.StatusCode, answer: status.Status | None = None, error: Exception | None = None
    ) -> None:
        seconds = time.monotonic() - started
        self._observe(self._method, code.name, seconds)
        fields: dict[str, Any] = {"code": code.name, "seconds": round(seconds, 6)}
        if answer is None:
            log.log(self._level, "%s answered", self._method, extra={"fields": fields})
            return
        if answer.error_id:
            fields["error_id"] = answer.error_id
        broken = code is grpc.StatusCode.INTERNAL
        level = logging.ERROR if broken else logging.INFO if code in _QUIET else logging.WARNING
        log.log(
            level,
            "%s refused: %s",
            self._method,
            answer.message,
            extra={"fields": fields},
            exc_info=error if broken else None,
        )


def call_of(context: grpc.ServicerContext) -> ports.Call:
    """The caller's patience. gRPC gives 9.2e18 seconds to a call without a deadline; the event is set when the call
    ends, answered or not.
    """
    cancelled = threading.Event()
    if not context.add_callback(cancelled.set):
        cancelled.set()  # it ended before we looked
    remaining = context.time_remaining()
    patient = remaining is None or remaining > _FOREVER_SECONDS
    return ports.Call(deadline=None if patient else time.monotonic() + remaining, cancelled=cancelled)


def _fields(method: str, request: Message) -> dict[str, str]:
    """Which volume, where and for whom: strings from the request that hold no secret."""
    fields = {"method": method}
    for name, source in (("volume", "volume_id"), ("target", "target_path")):
        value = getattr(request, source, "")
        if value:
            fields[name] = value
    context = getattr(request, "volume_context", {})
    pod = context.get("csi.storage.k8s.io/pod.name")
    if pod:
        fields["pod"] = f"{context.get('csi.storage.k8s.io/pod.namespace', '')}/{pod}"
    return fields
