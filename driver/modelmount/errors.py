"""The one exception hierarchy. `service/status.py` is the only place that maps it to gRPC codes.

Each class says whose fault it was and whether trying again can help. Messages are sentences for the pod's owner: what
went wrong, with which model, what to do. They never carry a secret, a query string or a traceback. Third-party
exceptions are translated where the library is called, with the cause chained.
"""

from __future__ import annotations

import unicodedata
from typing import ClassVar, Final

MESSAGE_BYTES: Final = 1024
"""Longest message. A client of gRPC's C core turns 15 kB into RESOURCE_EXHAUSTED, and an event may have 1 KiB."""


class ModelMountError(Exception):
    """Root of everything this package raises on purpose.

    `reason` is the CamelCase word used in events, logs and metrics; `retryable` says whether the same call may succeed
    later without anybody changing the request, the artifact or the configuration.
    """

    reason: ClassVar[str] = "Internal"
    retryable: ClassVar[bool] = False

    @property
    def message(self) -> str:
        """The sentence shown to users."""
        return str(self.args[0]) if self.args else self.reason


class InvalidRequest(ModelMountError):
    """The caller's words are wrong: reference, attribute, path, capability. INVALID_ARGUMENT."""

    reason = "InvalidRequest"


class NotFound(ModelMountError):
    """An authorised answer says that it isn't there, or a volume is unknown. NOT_FOUND."""

    reason = "NotFound"


class Conflict(ModelMountError):
    """The same volume exists with other attributes. ALREADY_EXISTS."""

    reason = "Conflict"


class Unauthenticated(ModelMountError):
    """The registry wants a credential and none was given. UNAUTHENTICATED."""

    reason = "Unauthenticated"


class Forbidden(ModelMountError):
    """The registry refused the credential, or an admin's rule forbids it. PERMISSION_DENIED."""

    reason = "Forbidden"


class Precondition(ModelMountError):
    """The state of the node forbids it: a symlink on the way to the target, a foreign mount, a file in its place.
    FAILED_PRECONDITION.
    """

    reason = "Precondition"


class BadArtifact(ModelMountError):
    """The bytes or declared sizes of the artifact decide against it: malformed, hostile, unsupported.
    FAILED_PRECONDITION.

    A verdict: the same manifest gets it again under the same rules, without a new download.
    """

    reason = "BadArtifact"


class UnpackingFailed(ModelMountError):
    """The process that unpacks an archive crashed, was killed, or broke its bounds. FAILED_PRECONDITION.

    It concerns that archive alone, and is no verdict: the archive may be hostile, or the node short of something.
    """

    reason = "UnpackingFailed"


class IntegrityError(ModelMountError):
    """A source served bytes whose digest or length is wrong. FAILED_PRECONDITION, tried again after a back-off."""

    reason = "IntegrityError"


class Pending(ModelMountError):
    """Work goes on in the background; the same call joins it. ABORTED."""

    reason = "Pending"
    retryable = True


class Unavailable(ModelMountError):
    """Transport or registry trouble that may pass. UNAVAILABLE. `retry_after` is in seconds, where the other side named
    one. `unreachable`: nobody could be connected to, so that it is the same for all, whatever they would have shown.
    `answered`: somebody was there and well, and said neither yes nor that it is in trouble, which is no outage.
    """

    reason = "Unavailable"
    retryable = True

    def __init__(
        self, message: str, *, retry_after: float | None = None, unreachable: bool = False, answered: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after, self.unreachable, self.answered = retry_after, unreachable, answered


class NoSpace(ModelMountError):
    """Disk or inodes are short; the message says how much is needed and free. RESOURCE_EXHAUSTED.

    `short_bytes` is how much more room would do, where that is known.
    """

    reason = "NoSpace"
    retryable = True

    def __init__(self, message: str, *, short_bytes: int = 0) -> None:
        super().__init__(message)
        self.short_bytes = short_bytes


class Cancelled(ModelMountError):
    """The caller went away or the driver is stopping; the work's bytes are kept. CANCELLED."""

    reason = "Cancelled"
    retryable = True


class Internal(ModelMountError):
    """A node-level operation failed that should not; everything done was undone. INTERNAL."""

    reason = "Internal"


def printable(text: str, limit: int = MESSAGE_BYTES) -> str:
    """`text` on one line: what isn't printable is escaped, and what is over `limit` bytes of UTF-8 is cut off at an
    ellipsis.
    """
    escaped = "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text[: limit + 1]
    )
    encoded = escaped.encode()
    if len(encoded) <= limit:
        return escaped
    return encoded[: limit - len("…".encode())].decode(errors="ignore") + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
