"""From a registry into an image layout: the manifest of a reference, or an index with all that it names, and every
blob, byte for byte. Nothing is chosen, unpacked or rewritten: the digest stays, and so does every signature over it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Final

from modelmount.errors import Cancelled, Unavailable
from modelmount.oci import manifest as manifests
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Reference
from modelmount.packaging.files import PIECE_BYTES
from modelmount.packaging.layout import Writer
from modelmount.packaging.whole import collect
from modelmount.pull.progress import Counters, Expected, Progress
from modelmount.registry.client import Client, Document
from modelmount.registry.credentials import Credential
from modelmount.sources.base import BlobSource
from modelmount.sources.ocilayout import NAME, TAG
from modelmount.sources.registry import RegistrySource
from modelmount.system import disk

TRIES: Final = 5
"""How often a blob is opened that breaks off without a byte between."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What is in the layout now. `blobs` counts manifests too; `fetched_bytes` are of those that weren't there."""

    digest: Digest
    bytes: int
    blobs: int
    fetched_bytes: int


class Export:
    """One export. Its work is done by `run`, once; others may look at `progress` meanwhile, and set `cancel`."""

    def __init__(self, client: Client, reference: Reference, credential: Credential) -> None:
        """Asks nobody yet."""
        self._client, self._reference, self._credential = client, reference, credential
        self._source: BlobSource = RegistrySource(client, reference.repository, lambda: credential)
        self.progress, self.cancel = Progress(), threading.Event()

    def run(self, writer: Writer) -> Exported:
        """Have the reference in the layout, and name it there. Raises what the registry's answers mean, IntegrityError
        for wrong bytes, BadArtifact for documents that can't be read, Cancelled.
        """
        reference = self._reference
        top = self._document(reference.digest or reference.tag or "latest")
        whole = collect(top, self._document, str(reference))
        self.progress.expect((Expected(_key(each), str(each.digest), each.size) for each in whole.blobs), "exporting")
        for each in whole.documents:
            if not writer.has(each.digest, len(each.data)):
                writer.blob(each.digest, len(each.data), iter([each.data]))
        self._blobs(writer, whole.blobs)
        writer.close(_entry(reference, top))
        snapshot = self.progress.snapshot()
        fetched = sum(file.bytes_total for file in snapshot.files if file.state == "ready")
        return Exported(top.digest, whole.bytes, len(whole.blobs) + len(whole.documents), fetched)

    def _document(self, name: str | Digest) -> Document:
        return self._client.manifest(self._reference.repository, name, self._credential)

    def _blobs(self, writer: Writer, blobs: Sequence[Descriptor]) -> None:
        with ThreadPoolExecutor(writer.at_once, thread_name_prefix="export") as threads:
            futures = [threads.submit(self._blob, writer, each) for each in sorted(blobs, key=lambda each: each.size)]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self.cancel.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _blob(self, writer: Writer, descriptor: Descriptor) -> None:
        counters = self.progress.file(_key(descriptor))
        if writer.has(descriptor.digest, descriptor.size):
            counters.found()
            return
        writer.blob(descriptor.digest, descriptor.size, self._pieces(descriptor, counters))
        counters.ready()

    def _pieces(self, descriptor: Descriptor, counters: Counters) -> Iterator[bytes]:
        """A blob's bytes, from where they broke off if they do."""
        if descriptor.data is not None:
            yield descriptor.data
            return
        position, failures = 0, 0
        view = disk.buffer(PIECE_BYTES)
        while position < descriptor.size:
            try:
                with self._source.open(descriptor, position) as opened:
                    skip = position - opened.offset
                    while count := opened.readinto(view):
                        if self.cancel.is_set():
                            raise Cancelled("interrupted")
                        fresh = view[min(skip, count) : count]
                        skip -= count - len(fresh)
                        if fresh:
                            position, failures = position + len(fresh), 0
                            counters.fetched(len(fresh))
                            yield bytes(fresh)
                break
            except Unavailable:
                failures += 1
                if failures == TRIES or self.cancel.wait(0.5 * failures):
                    raise


def _key(descriptor: Descriptor) -> tuple[str, str]:
    return str(descriptor.digest), ""


def _entry(reference: Reference, top: Document) -> dict[str, Any]:
    """The index's entry: the tag as tools want it, and the whole reference for who wants to know where it is from."""
    parsed = manifests.parse(top.data, top.media_type)
    annotations = {NAME: str(reference)} | ({TAG: reference.tag} if reference.tag is not None else {})
    entry: dict[str, Any] = {"mediaType": parsed.media_type, "digest": str(top.digest), "size": len(top.data)}
    if parsed.artifact_type is not None:
        entry["artifactType"] = parsed.artifact_type
    return {**entry, "annotations": annotations}
