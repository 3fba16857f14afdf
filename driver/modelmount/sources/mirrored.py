"""A registry behind its mirrors: each blob is had from the first of them that has it and is well, the registry comes
last.

Mirrors are optional in every way. What one of them doesn't have, refuses, fails at, or has no connection left for is
had from the next, from the byte on where it stopped. What it gets wrong is had again from elsewhere. Only the
registry's own word is final.

A mirror that has everything from the registries behind it fails as those do. Of a registry that no admin names, which
anybody may run, trouble with a mirror is that registry's own, unless nobody reaches the mirror at all.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from modelmount import telemetry
from modelmount.errors import Forbidden, IntegrityError, NotFound, Unauthenticated, Unavailable
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.sources.base import BlobSource, Opened
from modelmount.sources.health import Health, Turn

log = logging.getLogger(__name__)


class Bar(Protocol):
    """Keeps one mirror from serving one blob for a time, after it served it wrong; kept by the store."""

    def check(self) -> None:
        """Raise IntegrityError while it stands."""

    def punish(self, reason: str) -> None:
        """Begin, or begin again for longer."""


class MirroredSource:
    """The blobs of one model. Thread-safe. Its name is the registry's."""

    def __init__(
        self,
        origin: BlobSource,
        mirrors: Sequence[BlobSource],
        health: Health,
        bar: Callable[[Digest, str], Bar],
        *,
        is_strange: bool = False,
    ) -> None:
        """`mirrors` in the order in which they are asked; `bar` is that of a blob and a mirror, in this scope.
        `is_strange`: no admin names the registry.
        """
        self._origin, self._mirrors, self._health, self._bar = origin, mirrors, health, bar
        self._is_strange = is_strange
        self._lock = threading.Lock()
        self._useless: set[tuple[str, Digest | None]] = set()
        self._served: dict[Digest, set[str]] = {}
        self._came: Counter[str] = Counter()

    @property
    def name(self) -> str:
        """The registry, as it stands in references."""
        return self._origin.name

    @property
    def origin(self) -> BlobSource:
        """The registry."""
        return self._origin.origin

    @property
    def elsewhere(self) -> Mapping[str, int]:
        """What the mirrors sent, whatever became of it."""
        with self._lock:
            return dict(self._came)

    def open(self, descriptor: Descriptor, offset: int, end: int | None = None) -> Opened:
        """Open it at the first mirror that can, else at the registry. Raises what the registry's answer means."""
        for mirror in self._mirrors:
            opened = self._open(mirror, descriptor, offset, end)
            if opened is not None:
                return opened
        return self._origin.open(descriptor, offset, end)

    def blame(self, descriptor: Descriptor, reason: str) -> bool:
        """Whoever served a part of the blob may be the one, and serves it no more for now; the registry last."""
        with self._lock:
            suspects = self._served.pop(descriptor.digest, set())
        for name in sorted(suspects):
            self._wrong(name, descriptor, reason)
        return bool(suspects) or self._origin.blame(descriptor, reason)

    def count(self, name: str, count: int) -> None:
        """So many bytes came from the mirror."""
        telemetry.mirror_bytes_total.labels(name).inc(count)
        with self._lock:
            self._came[name] += count

    def failed(self, name: str, turn: Turn, trouble: Unavailable) -> None:
        """The mirror didn't do what it was asked for in this turn: it is left alone by all, or by this job."""
        if self._is_strange and not trouble.unreachable:
            self._give_up(name, None, "failed")
            return
        turn.failed(trouble.message, trouble.retry_after or 0.0)
        telemetry.mirror_requests_total.labels(name, "failed").inc()

    # -- inside

    def _open(self, mirror: BlobSource, descriptor: Descriptor, offset: int, end: int | None) -> Opened | None:
        name, digest = mirror.name, descriptor.digest
        if not self._usable(name, digest) or (turn := self._health.ask(name)) is None:
            return None
        try:
            opened = mirror.open(descriptor, offset, end)
        except NotFound:
            turn.heard()
            self._give_up(name, digest, "absent")
        except (Unauthenticated, Forbidden) as e:
            turn.heard()
            self._give_up(name, None, "refused")
            log.info("mirror %s isn't used for this model: %s", name, e.message)
        except IntegrityError as e:
            turn.heard()
            self._wrong(name, descriptor, e.message)
        except Unavailable as e:
            self.failed(name, turn, e)
        except BaseException:
            turn.close()
            raise
        else:
            with self._lock:
                self._served.setdefault(digest, set()).add(name)
            return _FromMirror(name, opened, descriptor, end, turn, self)
        turn.close()
        return None

    def _usable(self, name: str, digest: Digest) -> bool:
        with self._lock:
            if (name, None) in self._useless or (name, digest) in self._useless:
                return False
        try:
            self._bar(digest, name).check()
        except IntegrityError:
            return False
        return True

    def _give_up(self, name: str, digest: Digest | None, outcome: str) -> None:
        """The mirror is no use to this job: for one blob, or (None) for all."""
        with self._lock:
            self._useless.add((name, digest))
        telemetry.mirror_requests_total.labels(name, outcome).inc()

    def _wrong(self, name: str, descriptor: Descriptor, reason: str) -> None:
        log.warning("mirror %s may have served wrong bytes for %s: %s", name, descriptor.digest, reason)
        self._give_up(name, descriptor.digest, "wrong")
        self._bar(descriptor.digest, name).punish(reason)
        if not self._is_strange:
            self._health.failed(name, None, f"wrong bytes for {descriptor.digest}")


class _FromMirror(Opened):
    """A blob that a mirror serves. Its failures are the mirror's, and Unavailable to the reader, who asks anew."""

    def __init__(
        self,
        name: str,
        opened: Opened,
        descriptor: Descriptor,
        end: int | None,
        turn: Turn,
        job: MirroredSource,
    ) -> None:
        self._name, self._opened, self._turn, self._job = name, opened, turn, job
        self._digest, self._size = descriptor.digest, descriptor.size
        self._end = descriptor.size if end is None else end
        self._position = opened.offset
        self._over = False

    @property
    def offset(self) -> int:
        return self._opened.offset

    def readinto(self, view: memoryview) -> int:
        left = self._size - self._position
        try:
            count = self._opened.readinto(view[: max(1, left)])
        except Unavailable as e:
            if not self._over:
                self._fail(e)
            raise
        if count > left:
            trouble = Unavailable(f"mirror {self._name} sends more of {self._digest} than there is")
            self._fail(trouble)
            raise trouble
        self._position += count
        if count:
            self._job.count(self._name, count)
            self._turn.heard()
        elif self._position < self._end:
            self._fail(Unavailable(f"it ended {self._digest} after {self._position} of {self._size} bytes"))
        return count

    def interrupt(self) -> None:
        self._over = True  # which isn't the mirror's fault
        self._opened.interrupt()

    def close(self) -> None:
        if self._position >= self._end and not self._over:
            self._turn.served()
            telemetry.mirror_requests_total.labels(self._name, "served").inc()
        self._over = True
        try:
            self._opened.close()
        finally:
            self._turn.close()

    def _fail(self, trouble: Unavailable) -> None:
        self._over = True
        self._job.failed(self._name, self._turn, trouble)
