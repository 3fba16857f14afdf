"""An archive unpacked while it arrives: a thread follows the hasher through the page cache, into the ingest.

What it makes counts only once the whole archive has its digest: until then it lies in the ingest and nobody sees it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from modelmount.config import Limits
from modelmount.content import ingest as ingests
from modelmount.content.ingest import Ingest
from modelmount.errors import BadArtifact
from modelmount.pull.fetch import Cancel
from modelmount.pull.plan import Part
from modelmount.snapshots import layers, unpack
from modelmount.snapshots.decompress import RawReader


class Stream(RawReader, Protocol):
    """An archive from its beginning."""

    def close(self) -> None:
        """Let go of it."""


class Unpacking:
    """One archive being unpacked into its ingest. `finish` once the archive is verified, or `stop`; then it is over."""

    def __init__(
        self, ingest: Ingest, part: Part, source: Callable[[Cancel], Stream], limits: Limits, cancel: Cancel
    ) -> None:
        """Begins at once, in a thread of its own; `source` gets a cancel that ends a waiting read too."""
        self.layer = ingest.directory / "layer"
        self._part = part
        self._limits = unpack.Limits(
            bytes=limits.model_bytes, entries=limits.archive_entries, free_bytes=limits.free_bytes
        )
        self._cancel = Cancel(cancel)
        self._error: Exception | None = None
        self._over = False
        layers.clear(self.layer)
        name = f"unpack-{part.descriptor.digest.hex[:12]}"
        self._thread = threading.Thread(target=self._run, args=(source,), name=name, daemon=True)
        self._thread.start()

    def finish(self) -> Path:
        """The unpacked layer, not synced yet. Raises BadArtifact for what the archive's bytes decide, NoSpace,
        Cancelled.
        """
        self._thread.join()
        self._over = True
        digest = self._part.descriptor.digest
        match self._error:
            case None:
                return self.layer
            case BadArtifact() as e:
                raise BadArtifact(f"archive {digest}: {e.message}") from e
            case OSError() as e:
                raise ingests.disk_error(e, f"unpack {digest}") from e
            case e:
                raise e

    def stop(self) -> None:
        """Give up, unless it was finished; what was made is gone. While the ingest is still held."""
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
