"""Files into a repository: hashed, asked for, sent where they are missing, several at once; then the manifest."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from modelmount.errors import Cancelled
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import OCI_MANIFEST
from modelmount.packaging.base import Packager, Part
from modelmount.packaging.description import Description
from modelmount.packaging.files import File
from modelmount.pull.progress import Counters, Expected, Progress
from modelmount.registry.uploads import Bytes, How, Uploads

AT_ONCE: Final = 4
"""Files that are hashed or sent at the same time."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of it. `blobs` counts layers by how they came to be there, each digest once; `sent_bytes` are of
    those that were sent. `is_new` tells whether the manifest had to be sent.
    """

    digest: Digest
    blobs: Mapping[How, int]
    sent_bytes: int
    is_new: bool


class Push:
    """One push. Its work is done by `run`, once; `progress` may be looked at meanwhile, and `cancel` set, by others."""

    def __init__(
        self,
        uploads: Uploads,
        files: Sequence[File],
        package: Packager,
        about: Description,
        annotations: Mapping[str, str],
    ) -> None:
        """Reads and sends nothing yet."""
        self._uploads, self._files = uploads, files
        self._package, self._about, self._annotations = package, about, annotations
        self.progress, self.cancel = Progress(), threading.Event()
        self._seen = _Seen()
        self.progress.expect((Expected(_key(file), file.path, file.size) for file in files), "pushing")

    def run(self, name: str) -> Pushed:
        """Push under `name`, a tag. Raises what reading and the registry raise, the first of them; what was sent until
        then stays there, and the next push finds it. Raises Cancelled.
        """
        parts = self._parts()
        package = self._package(parts, self._about, self._annotations)
        self._uploads.blob(Digest.of(package.config), Bytes(package.config))
        is_new = self._uploads.manifest(name, package.manifest, OCI_MANIFEST)
        return Pushed(package.digest, self._seen.counts, self._seen.sent_bytes, is_new)

    def _parts(self) -> list[Part]:
        """All files, sent, in their own order. Small ones go first: then there is something to see."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="push") as threads:
            futures = {
                file.path: threads.submit(self._send, file) for file in sorted(self._files, key=lambda f: f.size)
            }
            try:
                done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                return [futures[file.path].result() for file in self._files]
            except BaseException:
                self.cancel.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _send(self, file: File) -> Part:
        if self.cancel.is_set():
            raise Cancelled("interrupted")
        digest = file.digest(self.cancel)
        counters = self.progress.file(_key(file))
        part = Part(file.path, file.size, digest)
        if not self._seen.claim(digest):
            counters.found()  # another file of the same bytes is sent
            return part
        how = self._uploads.blob(digest, _Sent(file, counters, self.cancel))
        self._seen.ended(how, file.size)
        if how == "sent":
            counters.ready()
        else:
            counters.found()
        return part


def _key(file: File) -> tuple[str, str]:
    return file.path, ""


class _Sent:
    """A file's bytes on their way, counted; those of a try that failed count no longer once the next one begins."""

    def __init__(self, file: File, counters: Counters, cancel: threading.Event) -> None:
        self._file, self._counters, self._cancel = file, counters, cancel
        self._counted = 0

    @property
    def length(self) -> int:
        return self._file.size

    def pieces(self) -> Iterator[bytes]:
        self._counters.have(-self._counted)
        self._counted = 0
        for piece in self._file.pieces(self._cancel):
            yield piece
            self._counted += len(piece)
            self._counters.fetched(len(piece))


class _Seen:
    """The digests that somebody takes care of, and what became of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: set[Digest] = set()
        self.counts: Counter[How] = Counter()
        self.sent_bytes = 0

    def claim(self, digest: Digest) -> bool:
        """Whether the caller is the first, and takes care of it."""
        with self._lock:
            new = digest not in self._digests
            self._digests.add(digest)
            return new

    def ended(self, how: How, size: int) -> None:
        with self._lock:
            self.counts[how] += 1
            if how == "sent":
                self.sent_bytes += size
