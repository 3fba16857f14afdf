"""What a model needs: its layout, the blobs behind it in the forms they are needed in, what of it is missing, and the
tree it becomes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from modelmount import formats
from modelmount.config import Limits
from modelmount.content import ingest
from modelmount.content.pulls import Claim
from modelmount.content.store import Store
from modelmount.errors import BadArtifact
from modelmount.formats.base import Encoding, Layout, Member, Placement
from modelmount.formats.selection import EVERYTHING, Selection
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest
from modelmount.pull import progress
from modelmount.pull.progress import human_bytes
from modelmount.pull.verdicts import Facts
from modelmount.snapshots import layers, unpack

SMALL_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One blob in one form. Raw blobs are files themselves; archives are needed unpacked."""

    descriptor: Descriptor
    encoding: Encoding
    uncompressed: Digest | None = None
    """What the artifact says of a compressed archive after decompression; checked when this is what unpacks it."""
    path: str | None = None
    """Where the model has it first, or has what comes out of the archive."""

    @property
    def key(self) -> progress.Key:
        """What it is known by."""
        return str(self.descriptor.digest), self.form

    @property
    def expected(self) -> progress.Expected:
        """What a pull's progress says of it."""
        is_archive = self.encoding is not Encoding.RAW
        name = self.path if self.path and self.path != "." else str(self.descriptor.digest)
        return progress.Expected(self.key, name, self.descriptor.size, is_archive)

    @property
    def form(self) -> str:
        """`raw` or `unpacked`: presence, single flight and ingest are per form."""
        return ingest.RAW if self.encoding is Encoding.RAW else ingest.UNPACKED

    @property
    def is_scattered(self) -> bool:
        """Whether it goes straight into its members, without lying here as an archive."""
        return self.encoding in {Encoding.TAR, Encoding.ROOTFS_TAR}

    def present(self, store: Store, scope: str) -> bool:
        """Whether it is committed and available to this scope."""
        if self.encoding is Encoding.RAW:
            return store.has_blob(self.descriptor.digest, scope)
        return self.unpacked_rules(store, scope) is not None

    def needs_bytes(self, store: Store, scope: str) -> bool:
        """Whether it is not even here in raw form, from which it could be unpacked."""
        return not self.present(store, scope) and not store.has_blob(self.descriptor.digest, scope)

    def unpacked_rules(self, store: Store, scope: str) -> int | None:
        """The newest rules under which it lies unpacked for this scope."""
        return store.unpacked_rules(self.descriptor.digest, scope, unpack.versions(self.encoding))

    def claim(self, scope: str) -> Claim:
        """What its download takes on disk. A compressed archive is there twice while it is unpacked; what it unpacks to
        is known only then.
        """
        size = self.descriptor.size * (1 if self.encoding is Encoding.RAW or self.is_scattered else 2)
        digest = self.descriptor.digest
        return Claim(digest.hex, self.form, ingest.name(digest, scope, self.form), size)


@dataclass(frozen=True, slots=True)
class Plan:
    """A manifest read by its format. Immutable; presence is asked of the store each time."""

    manifest: Manifest
    layout: Layout
    parts: tuple[Part, ...]
    selection: Selection = EVERYTHING
    revision: str = ""
    """Names the model in layouts that want one."""

    @property
    def total_bytes(self) -> int:
        """Declared bytes of all distinct blobs that are needed."""
        return sum(part.descriptor.size for part in self.parts)

    @property
    def documents(self) -> tuple[bytes, ...]:
        """What the tree needs beside the parts; it has to be put into the store."""
        return tuple(formats.documents(self.selection, self.revision).values())

    def claims(self, scope: str) -> Iterator[Claim]:
        """All that the tree will be linked from, and what its download takes on disk."""
        for part in self.parts:
            yield part.claim(scope)
        for document in self.documents:
            digest = Digest.of(document)
            yield Claim(digest.hex, ingest.RAW, ingest.name(digest, scope, ingest.RAW), len(document))

    def facts(self, digest: Digest) -> Facts:
        """What is true of this manifest under any rules."""
        manifest = self.manifest
        return Facts(
            str(digest),
            manifest.media_type,
            manifest.kind_type or "",
            self.layout.format,
            sum(size for _, size in {(layer.digest, layer.size) for layer in manifest.layers}),
            len(manifest.layers),
        )

    def missing(self, store: Store, scope: str) -> list[Part]:
        """Parts that must be fetched or unpacked for this scope, in the order to do so."""
        return [part for part in self.parts if not part.present(store, scope)]

    def placement(self, store: Store, scope: str) -> Placement | None:
        """Where every file goes, or None when a source is missing. The caller holds the shared store lock until the
        tree is linked.
        """
        if not all(store.has_blob(Digest.of(document), scope) for document in self.documents):
            return None
        members: dict[Digest, tuple[Member, ...]] = {}
        rules: dict[Digest, int] = {}
        for part in self.parts:
            digest = part.descriptor.digest
            if part.encoding is Encoding.RAW:
                if not store.has_blob(digest, scope):
                    return None
                continue
            version = part.unpacked_rules(store, scope)
            if version is None:
                return None
            members[digest], rules[digest] = layers.members(store, digest, version), version

        def sha256_of(source: str) -> str:
            return layers.sha256_of(store, source)

        return formats.place(self.layout, members, rules, self.selection, self.revision, sha256_of=sha256_of)


def make_plan(
    manifest: Manifest, config: bytes | None, limits: Limits, selection: Selection = EVERYTHING, revision: str = ""
) -> Plan:
    """Decide the layout and check the declared sizes. Raises BadArtifact, InvalidRequest where the selection leaves
    nothing.
    """
    layout = formats.decide(manifest, config, selection)
    parts: dict[progress.Key, Part] = {}
    for layer in layout.layers:
        part = Part(layer.descriptor, layer.encoding, layer.uncompressed, layer.path)
        known = parts.setdefault(part.key, part)
        if known.descriptor.size != part.descriptor.size:
            raise BadArtifact(f"{part.descriptor.digest} is listed with two sizes; push the model again")
    ordered = sorted(parts.values(), key=lambda part: (part.descriptor.size > SMALL_BYTES, _natural(part.path or "")))
    plan = Plan(manifest, layout, tuple(ordered), selection, revision)
    if plan.total_bytes > limits.model_bytes:
        raise BadArtifact(
            f"the model declares {human_bytes(plan.total_bytes)}, more than the {human_bytes(limits.model_bytes)} an "
            "admin allows (limits.model_bytes)"
        )
    return plan


def _natural(path: str) -> list[tuple[int, int, str]]:
    """Sort key in which `model-10` comes after `model-2`: the order in which loaders open shards."""
    return [
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"([0-9]+)", path)
    ]
