"""One blob from its source into its ingest: received, journalled, hashed behind the writer, verified. The hot path of a
pull.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from modelmount import telemetry
from modelmount.content import ingest as ingests
from modelmount.content.backoff import Backoff
from modelmount.content.ingest import Ingest
from modelmount.errors import Cancelled, IntegrityError, Unavailable
from modelmount.oci.descriptor import Descriptor
from modelmount.pull.hashing import Follower
from modelmount.pull.progress import Progress
from modelmount.sources.base import BlobSource
from modelmount.transport.retry import Policy

BUFFER_BYTES = 128 << 10
"""One receive, one write. 64 KiB to 1 MiB receive equally fast; larger *writes* made the page cache far slower on
virtual machines that return free memory to their host, so 128 KiB is the safe size (measured; see docs/design).
"""
ATTEMPTS = 6
"""Failures in a row without a single byte between them, after which the job gives up and lets the caller's back-off
decide.
"""


class Cancel:
    """A job's cancel switch: checked between buffers, waited on during back-off."""

    def __init__(self, parent: Cancel | None = None) -> None:
        """Not cancelled yet; a parent's cancel counts too."""
        self._event = threading.Event()
        self._parent = parent

    def set(self) -> None:
        """Ask the job to stop; it keeps its bytes."""
        self._event.set()

    def __call__(self) -> bool:
        """Whether the job should stop."""
        return self._event.is_set() or (self._parent is not None and self._parent())

    def sleep(self, seconds: float) -> None:
        """Wait, but not (much) beyond a cancel."""
        end = time.monotonic() + seconds
        while not self() and (left := end - time.monotonic()) > 0:
            self._event.wait(min(left, 0.25))


def fetch(
    ingest: Ingest,
    descriptor: Descriptor,
    source: BlobSource,
    backoff: Backoff,
    progress: Progress,
    cancel: Cancel,
    policy: Policy,
) -> None:
    """Fill `ingest` and verify it; on return its bytes are the descriptor's.

    Raises IntegrityError (the bytes are dropped and the source is backed off), Unavailable after repeated failures
    without progress, Cancelled, NoSpace; in all but the first case the ingest keeps what the journal proves.
    """
    backoff.check()
    follower = Follower(ingest.fd, descriptor.digest, descriptor.size)
    progress.have(ingest.offset)
    try:
        follower.advance(ingest.offset)
        _receive_all(ingest, descriptor, source, follower, progress, cancel, policy)
        found = follower.finish()
    except OSError as e:
        raise ingests.disk_error(e, f"read {descriptor.digest} back") from e
    except IntegrityError as e:
        _refuse(ingest, backoff, progress, str(e))
        raise
    finally:
        follower.stop()
    if found != descriptor.digest.hex:
        algorithm = descriptor.digest.algorithm
        reason = f"{source.name} served wrong bytes for {descriptor.digest} (they hash to {algorithm}:{found})"
        _refuse(ingest, backoff, progress, reason)
        raise IntegrityError(
            f"{reason}; nothing of it was shown to any pod; have the registry's copy checked or push the model again"
        )
    backoff.forgive()
    telemetry.blobs_total.labels("fetched").inc()


def _refuse(ingest: Ingest, backoff: Backoff, progress: Progress, reason: str) -> None:
    backoff.punish(reason)
    progress.have(-ingest.offset)
    ingest.discard()
    telemetry.blobs_total.labels("refused").inc()


def _receive_all(
    ingest: Ingest,
    descriptor: Descriptor,
    source: BlobSource,
    follower: Follower,
    progress: Progress,
    cancel: Cancel,
    policy: Policy,
) -> None:
    view = memoryview(bytearray(BUFFER_BYTES))
    failures = 0
    while ingest.offset < descriptor.size:
        before = ingest.offset
        try:
            _receive(ingest, descriptor, source, view, follower.advance, progress, cancel)
        except Unavailable as e:
            failures = 1 if ingest.offset > before else failures + 1
            if failures >= ATTEMPTS:
                raise
            cancel.sleep(policy.delay(failures, e.retry_after))
        if cancel():
            raise Cancelled(f"the pull of {descriptor.digest} was stopped; its bytes are kept")


def _receive(
    ingest: Ingest,
    descriptor: Descriptor,
    source: BlobSource,
    view: memoryview,
    advance: Callable[[int], None],
    progress: Progress,
    cancel: Cancel,
) -> None:
    """One request: append what it brings from the ingest's offset on."""
    with source.open(descriptor, ingest.offset) as opened:
        skip = ingest.offset - opened.offset  # a source that ignores ranges sends the head once more
        while not cancel():
            count = opened.readinto(view)
            if not count:
                break
            telemetry.fetched_bytes_total.inc(count)
            if skip >= count:
                skip -= count
                continue
            part, skip = view[skip:count], 0
            if ingest.offset + len(part) > descriptor.size:
                raise IntegrityError(
                    f"{source.name} sent more than the {descriptor.size} bytes that {descriptor.digest} has; push the "
                    "model again"
                )
            ingest.append(part)
            advance(ingest.offset)
            progress.fetched(len(part))
    if not cancel() and ingest.offset < descriptor.size:
        raise Unavailable(f"{source.name} ended {descriptor.digest} after {ingest.offset} of {descriptor.size} bytes")
