"""A blob that is here for another repository, taken over after its own source showed to have it: random ranges of what
it sends are compared with what is here. For registries only of which the admin says so, because their operators can see
from the requests that the blob is here. Their mirrors are not asked: one that serves by digest alone has what others
brought.

A digest is no secret, so naming it proves nothing, and a HEAD is the other side's word only. A holder of 90 % of a
blob's bytes passes 64 ranges once in 850 tries, and one range that is wrong bars the repository from further tries for
a day: the blob is downloaded then, and verified, like any other.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from typing import Final

from modelmount import telemetry
from modelmount.content.backoff import Backoff
from modelmount.content.ingest import RAW
from modelmount.content.store import Store
from modelmount.errors import IntegrityError, ModelMountError
from modelmount.pull.fetch import Cancel
from modelmount.pull.peek import peek
from modelmount.pull.plan import Part
from modelmount.sources.base import BlobSource

log = logging.getLogger(__name__)

SMALLEST_BYTES: Final = 8 << 20
"""Smaller blobs are downloaded: that is hardly more than the ranges."""
RANGES: Final = 64
RANGE_BYTES: Final = 64 << 10
HEAD_BYTES: Final = 1 << 20
"""Left out: headers are alike in many files, and easy to guess."""
BAR_SECONDS: Final = 86400.0


def take_over(store: Store, scope: str, source: BlobSource, parts: Sequence[Part], cancel: Cancel) -> list[Part]:
    """Those of `parts` that still have to be downloaded. Trouble with the source is no error here: the download that
    follows meets it again.
    """
    return [part for part in parts if cancel() or not _taken_over(store, scope, source, part, cancel)]


def _taken_over(store: Store, scope: str, source: BlobSource, part: Part, cancel: Cancel) -> bool:
    descriptor = part.descriptor
    path = store.blob_path(descriptor.digest)
    if part.form != RAW or descriptor.size < SMALLEST_BYTES or not path.exists():
        return False
    bar = Backoff(store, descriptor.digest, scope, "possession", first_seconds=BAR_SECONDS, last_seconds=BAR_SECONDS)
    try:
        bar.check()
    except IntegrityError:
        return False
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != descriptor.size:
                return False
            for _ in range(RANGES):
                offset = HEAD_BYTES + secrets.randbelow(descriptor.size - HEAD_BYTES - RANGE_BYTES + 1)
                theirs = peek(source.origin, descriptor, offset, RANGE_BYTES)
                if cancel() or theirs is None:
                    return False
                if theirs != os.pread(file.fileno(), RANGE_BYTES, offset):
                    bar.punish(f"{source.name} showed other bytes of {descriptor.digest} than it has")
                    log.warning("%s doesn't have %s as it says; it is downloaded", source.name, descriptor.digest)
                    return False
    except (OSError, ModelMountError) as e:
        log.info("%s can't prove to have %s: %s", source.name, descriptor.digest, e)
        return False
    with store.locks.shared():
        if not path.exists():
            return False  # it went meanwhile
        store.admit(descriptor.digest, scope)
    telemetry.blobs_total.labels("proved").inc()
    return True
