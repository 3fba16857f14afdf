"""Archives that become layers while they arrive. A compressed one lies in its ingest and a process of its own unpacks
it, following the hasher through the page cache; an uncompressed one is written straight into its members.

What is made counts only once the whole archive has its digest: until then it lies in the ingest and nobody sees it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from modelmount.config import Limits
from modelmount.content import ingest as ingests
from modelmount.content.ingest import Ingest
from modelmount.errors import BadArtifact, Cancelled, UnpackingFailed
from modelmount.pull.fetch import Cancel
from modelmount.pull.plan import Part
from modelmount.snapshots import isolated, layers, unpack
from modelmount.snapshots.decompress import PIECE_BYTES, RawReader
from modelmount.snapshots.scatter import Scatter
from modelmount.system import disk


class Stream(isolated.Stream, Protocol):
    """An archive from its beginning."""

    def close(self) -> None:
        """Let go of it."""


class Layering(Protocol):
    """One archive on its way to a layer. `finish` once the archive is verified, or `stop`; then it is over."""

    def finish(self) -> Path:
        """The layer, not synced yet. Raises BadArtifact for what the archive's bytes decide, IntegrityError, NoSpace,
        Cancelled.
        """
        ...

    def stop(self) -> None:
        """Give up, unless it was finished. While the ingest is still held."""
        ...


class Unpacking:
    """One archive being unpacked into its ingest. `finish` once the archive is verified, or `stop`; then it is over."""

    def __init__(
        self, ingest: Ingest, part: Part, source: Callable[[Cancel], Stream], limits: Limits, cancel: Cancel
    ) -> None:
        """Begins at once, with a thread that watches over it; `source` gets a cancel that ends a waiting read too."""
        self.layer = ingest.directory / "layer"
        self._part = part
        self._limits = bounds(limits)
        self._cancel = Cancel(cancel)
        self._error: Exception | None = None
        self._over = False
        layers.clear(self.layer)
        name = f"unpack-{part.descriptor.digest.hex[:12]}"
        self._thread = threading.Thread(target=self._run, args=(source,), name=name, daemon=True)
        self._thread.start()

    def finish(self) -> Path:
        """See Layering."""
        self._thread.join()
        self._over = True
        with named(self._part):
            if self._error is not None:
                raise self._error
        return self.layer

    def stop(self) -> None:
        """See Layering. What was made is gone."""
        if self._over:
            return
        self._cancel.set()
        self._thread.join()
        layers.clear(self.layer)

    def _run(self, source: Callable[[Cancel], Stream]) -> None:
        part = self._part
        try:
            with contextlib.closing(source(self._cancel)) as stream:
                layers.build(
                    stream, part.encoding, self.layer, self._limits, self._cancel, uncompressed=part.uncompressed
                )
        except Exception as e:  # noqa: BLE001 - `finish` raises it in the thread that asks
            self._error = e


class Scattering:
    """One uncompressed archive whose ingest has `body`, made once and when the ingest is opened."""

    def __init__(self, part: Part, limits: Limits, cancel: Cancel) -> None:
        """Nothing happens yet."""
        self._part, self._limits, self._cancel = part, bounds(limits), cancel
        self._scatter: Scatter | None = None

    def body(self, directory: Path) -> Scatter:
        """For the ingest in this directory."""
        descriptor = self._part.descriptor
        self._scatter = Scatter(
            directory / "layer",
            descriptor.size,
            self._limits,
            self._cancel,
            rootfs=self._part.encoding.is_rootfs,
            what=f"archive {descriptor.digest}",
        )
        return self._scatter

    def finish(self) -> Path:
        """See Layering."""
        assert self._scatter is not None
        with named(self._part):
            return self._scatter.finish()

    def stop(self) -> None:
        """See Layering. What was written stays, for the next attempt."""


def fill(ingest: Ingest, raw: RawReader, cancel: Cancel) -> None:
    """Write an archive that is in the store already into an ingest, as if it came from a source."""
    view = disk.buffer(PIECE_BYTES)
    with ingest.writer(0) as writer:
        while count := raw.readinto(view):
            if cancel():
                raise Cancelled("unpacking was stopped; what was unpacked is kept")
            writer.append(view[:count])


def bounds(limits: Limits) -> unpack.Limits:
    """What an admin allows of one archive."""
    return unpack.Limits(
        bytes=limits.model_bytes,
        entries=limits.archive_entries,
        free_bytes=limits.free_bytes,
        expansion=limits.expansion,
    )


@contextlib.contextmanager
def named(part: Part) -> Iterator[None]:
    """Errors of the block say which archive it was."""
    digest = part.descriptor.digest
    try:
        yield
    except (BadArtifact, UnpackingFailed) as e:
        raise type(e)(f"archive {digest}: {e.message}") from e
    except OSError as e:
        raise ingests.disk_error(e, f"unpack {digest}") from e
