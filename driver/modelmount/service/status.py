"""The only map from errors to gRPC codes, and from messages to what may leave the process.

The codes decide what the kubelet does next: after ABORTED, UNAVAILABLE, RESOURCE_EXHAUSTED, CANCELLED and
DEADLINE_EXCEEDED it keeps the volume as "uncertain" and will unpublish it; every other code is final, and it forgets
the volume (kubernetes, pkg/volume/csi, isFinalError).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from modelmount import errors
from modelmount.content.diskerrors import disk_error, is_full

_PERCENT = re.compile(r" ?%")
"""The kubelet takes our sentence as a format of Go: its event would read `43 %!(MISSING)`, or `%!c(MISSING)`."""


class OutOfRange(errors.InvalidRequest):
    """A capacity range no volume can satisfy. OUT_OF_RANGE."""

    reason = "OutOfRange"


class NotOffered(errors.ModelMountError):
    """A method of the interface that this driver doesn't have, or not in this mode. UNIMPLEMENTED."""

    reason = "NotOffered"


CODES: Mapping[type[errors.ModelMountError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.Precondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BadArtifact: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnpackingFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.IntegrityError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Pending: grpc.StatusCode.ABORTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.NoSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.Internal: grpc.StatusCode.INTERNAL,
    OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    NotOffered: grpc.StatusCode.UNIMPLEMENTED,
}
"""By class; a class that isn't listed has the code of its nearest listed ancestor."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a failed call answers. `error_id` leads to the log line of an unexpected error, and is empty otherwise."""

    code: grpc.StatusCode
    message: str
    error_id: str = ""


def of(error: Exception) -> Status:
    """The answer to `error`. Nothing of an exception that wasn't raised on purpose gets out: its text may hold
    anything.
    """
    if isinstance(error, OSError) and is_full(error):
        error = disk_error(error, "go on")
    if isinstance(error, errors.ModelMountError):
        for ancestor in type(error).__mro__:
            code = CODES.get(ancestor)
            if code is not None:
                return Status(code, errors.printable(_PERCENT.sub(" percent", error.message)))
    error_id = secrets.token_hex(4)
    text = f"an unexpected error stopped this call; the driver's log has the details under error id {error_id}"
    return Status(grpc.StatusCode.INTERNAL, text, error_id)
