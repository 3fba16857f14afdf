"""Files, or an image layout, into a repository: each asked for by digest and sent where it is missing, several at once;
then the manifest.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Final, TypeVar

from modelmount.errors import Cancelled
from modelmount.oci import manifest as manifests
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import OCI_MANIFEST
from modelmount.packaging.base import Packager, Part
from modelmount.packaging.description import Description
from modelmount.packaging.files import File
from modelmount.packaging.whole import collect
from modelmount.pull.progress import Counters, Expected, Progress
from modelmount.registry.client import Document
from modelmount.registry.uploads import Bytes, How, Uploads
from modelmount.sources.ocilayout import Layout, LayoutSource

AT_ONCE: Final = 4
"""Files that are hashed or sent at the same time."""

ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")


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
        """All files, sent, in their own order."""
        parts = _all(self._files, lambda file: file.size, self._send, self.cancel)
        return sorted(parts, key=lambda part: part.path)

    def _send(self, file: File) -> Part:
        digest = file.digest(self.cancel)
        part = Part(file.path, file.size, digest)
        _have(self._uploads, digest, file, self.progress.file(_key(file)), self._seen, self.cancel)
        return part


class LayoutPush:
    """One push of what a layout has, as it is: with its digest, its indexes, and every signature over it. As `Push`."""

    def __init__(self, uploads: Uploads, layout: Layout, entry: Descriptor) -> None:
        """Reads its documents, sends nothing yet. Raises as reading a layout does."""
        self._uploads = uploads
        top = Document(layout.document(entry.digest), entry.media_type, entry.digest)
        self._whole = collect(top, lambda digest: Document(layout.document(digest), None, digest), str(layout.path))
        self._source = LayoutSource(layout)
        self.progress, self.cancel = Progress(), threading.Event()
        self._seen = _Seen()
        expected = (Expected((str(each.digest), ""), str(each.digest), each.size) for each in self._whole.blobs)
        self.progress.expect(expected, "pushing")

    def run(self, name: str) -> Pushed:
        """Push under `name`, a tag: blobs, then manifests, then what names them. Raises as `Push.run`."""
        _all(self._whole.blobs, lambda blob: blob.size, self._send, self.cancel)
        *below, top = self._whole.documents
        for each in below:
            self._uploads.manifest(str(each.digest), each.data, _type(each))
        is_new = self._uploads.manifest(name, top.data, _type(top))
        return Pushed(top.digest, self._seen.counts, self._seen.sent_bytes, is_new)

    def _send(self, blob: Descriptor) -> None:
        file = File(str(blob.digest), blob.size, lambda: _opened(self._source, blob))
        counters = self.progress.file((str(blob.digest), ""))
        _have(self._uploads, blob.digest, file, counters, self._seen, self.cancel)


def _all(
    items: Sequence[ItemT], size: Callable[[ItemT], int], send: Callable[[ItemT], DoneT], cancel: threading.Event
) -> list[DoneT]:
    """`send` for each, several at once, small ones first: then there is something to see. The first error ends it."""

    def unless_cancelled(item: ItemT) -> DoneT:
        if cancel.is_set():
            raise Cancelled("interrupted")
        return send(item)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="push") as threads:
        futures = [threads.submit(unless_cancelled, item) for item in sorted(items, key=size)]
        try:
            return [future.result() for future in as_completed(futures)]
        except BaseException:
            cancel.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _have(
    uploads: Uploads, digest: Digest, file: File, counters: Counters, seen: _Seen, cancel: threading.Event
) -> None:
    """Have the file's bytes in the repository, unless somebody else takes care of the same ones."""
    if not seen.claim(digest):
        counters.found()
        return
    how = uploads.blob(digest, _Sent(file, counters, cancel))
    seen.ended(how, file.size)
    if how == "sent":
        counters.ready()
    else:
        counters.found()


def _type(document: Document) -> str:
    return manifests.parse(document.data, document.media_type).media_type


@contextlib.contextmanager
def _opened(source: LayoutSource, blob: Descriptor) -> Iterator[_Reader]:
    if blob.data is not None:
        yield _Reader(io.BytesIO(blob.data).readinto)
        return
    with source.open(blob, 0) as opened:
        yield _Reader(opened.readinto)


class _Reader:
    """What can be received into a view, as a file that is read."""

    def __init__(self, readinto: Callable[[memoryview], int]) -> None:
        self._readinto = readinto

    def read(self, count: int, /) -> bytes:
        data = bytearray(count)
        return bytes(data[: self._readinto(memoryview(data))])


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
