"""A store that is filled by hand: real models, linked by the code that links pulled ones, without a network."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelmount.config import Limits
from modelmount.content import ingest as ingests
from modelmount.content.pulls import Claim, PullRecord
from modelmount.content.store import Store
from modelmount.formats.base import Encoding
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest
from modelmount.oci.reference import Reference
from modelmount.pull import plan as plans
from modelmount.pull import verdicts
from modelmount.pull.resolver import Ref
from modelmount.snapshots import layers, unpack
from modelmount.snapshots import tree as trees
from modelmount.snapshots.isolated import Whole
from modelmount.system import atomic, host
from modelmount.volumes.leases import Lease, Leases

RAW = "application/vnd.cncf.model.weight.v1.raw"
TAR = "application/vnd.cncf.model.weight.v1.tar"
REGISTRY = "registry.example.com"


@dataclass(frozen=True, slots=True)
class Made:
    """One model of the store, and what it should consist of: names of blobs and unpacked layers."""

    reference: Reference
    manifest: Digest
    tree: trees.Tree
    items: frozenset[str]
    files: Mapping[str, bytes]

    @property
    def scope(self) -> str:
        return self.reference.repository.scope


def content(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


class Shelf:
    """Puts models into a store, and leases on them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.leases = Leases(store)

    def put(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        packed: Mapping[str, bytes] | None = None,
        idle: float = 0.0,
        linked: bool = True,
        record: PullRecord | None = None,
        namespace: str = "",
    ) -> Made:
        """A model with these files as raw layers and `packed` in one archive, last used `idle` seconds ago. `record`
        holds all of it from before it is looked at, as a pull's does.
        """
        reference = Reference.parse(f"{REGISTRY}/llm/{name}:v1")
        scope = reference.repository.scope
        if record is not None:
            record.hold(_claim(Digest.of(data), scope) for data in (*files.values(), b"{}"))
        described = [self._raw(path, data, scope) for path, data in sorted(files.items())]
        if packed:
            described.append(self._archive(packed, scope))
        config = b"{}"
        self.store.put_document(config, Digest.of(config), scope)
        document = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": manifests.OCI_MANIFEST,
                "artifactType": "application/vnd.cncf.model.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.cncf.model.config.v1+json",
                    "digest": str(Digest.of(config)),
                    "size": len(config),
                },
                "layers": described,
                "annotations": {"name": name},
            }
        ).encode()
        manifest = Digest.of(document)
        if record is not None:
            claims = [_claim(Digest.of(data), scope) for data in (*files.values(), b"{}")]
            record.hold([Claim.of_manifest(manifest, scope), *claims])
        self.store.put_document(document, manifest, scope)
        parsed = manifests.parse(document)
        assert isinstance(parsed, Manifest)
        plan = plans.make_plan(parsed, config, Limits())
        verdicts.record_facts(self.store, plan.facts(manifest), namespace)
        ref = Ref(str(reference), str(manifest), str(manifest), time.time())
        where = self.store.root / "refs" / hashlib.sha256(str(reference).encode()).hexdigest()
        atomic.write_file(where, msgspec.json.encode(ref))
        with self.store.locks.shared():
            placement = plan.placement(self.store, scope)
            assert placement is not None
            tree = trees.build(self.store, scope, manifest, "", placement)
        if not linked:
            (view,) = [view.path for view in trees.views(self.store) if view.manifest == str(manifest)]
            view.unlink()
        items = {f"blobs/sha256/{manifest.hex}", f"blobs/sha256/{Digest.of(config).hex}"}
        for part in plan.parts:
            if part.encoding is Encoding.RAW:
                items.add(f"blobs/sha256/{part.descriptor.digest.hex}")
            else:
                items.add(f"unpacked/{part.descriptor.digest.hex}/{unpack.rules(part.encoding)}")
        made = Made(reference, manifest, tree, frozenset(items), {**files, **(packed or {})})
        self.age(made, idle)
        return made

    def age(self, made: Made, seconds: float) -> None:
        """Last used that long ago, and written then."""
        then = time.time() - seconds
        os.utime(self.store.root / "models" / made.manifest.hex, (then, then))
        os.utime(made.tree.root.parent / "tree.json", (then, then))
        for item in made.items:
            path = self.store.root / item
            os.utime(path / "index.json" if path.is_dir() else self.store.root / "scopes" / path.name, (then, then))

    def lease(
        self,
        made: Made,
        volume: str = "volume",
        *,
        boot: str | None = None,
        owner: str = "csi",
        namespace: str = "",
    ) -> Lease:
        """As a publish writes it, without a mount."""
        with self.store.locks.shared():
            return self.write_lease(made, volume, boot=boot, owner=owner, namespace=namespace)

    def write_lease(
        self, made: Made, volume: str, *, boot: str | None = None, owner: str = "csi", namespace: str = ""
    ) -> Lease:
        """The same for who holds the store's lock."""
        lease = Lease(
            volume_id=volume,
            target=f"/var/lib/kubelet/pods/{volume}/mount",
            attributes={"model": str(made.reference)},
            reference=str(made.reference),
            registry=made.reference.repository.registry,
            repository=made.reference.repository.repository,
            manifest=str(made.manifest),
            pod_uid="pod",
            namespace=namespace,
            owner="cli" if owner == "cli" else "csi",
            tree=made.tree.id,
            boot_id=host.boot_id() if boot is None else boot,
        )
        self.leases.write(lease)
        return lease

    def partial(self, seed: str, size: int, *, idle: float = 0.0) -> str:
        """An interrupted download; its name."""
        data = content(seed, size)
        digest = Digest.of(data)
        name = ingests.name(digest, "ab" * 16, ingests.RAW)
        with self.store.lock(f"ingest-{name}").acquire(timeout=0) as held:
            ingest = ingests.Ingest.open(self.store, digest, size + 1, "ab" * 16, ingests.RAW, held)
            writer = ingest.writer(0)
            writer.append(memoryview(data))
            writer.close()
            ingest.close()
        then = time.time() - idle
        directory = self.store.root / "ingest" / name
        for path in (*directory.iterdir(), directory):
            os.utime(path, (then, then))
        return name

    def present(self) -> set[str]:
        """Blobs and unpacked layers that are there."""
        blobs = {f"blobs/sha256/{path.name}" for path in (self.store.root / "blobs/sha256").iterdir()}
        return blobs | {
            f"unpacked/{path.parent.name}/{path.name}" for path in (self.store.root / "unpacked").glob("*/*")
        }

    def models(self) -> set[str]:
        return {path.parent.name for path in (self.store.root / "models").glob("*/facts.json")}

    def _raw(self, path: str, data: bytes, scope: str) -> dict[str, object]:
        digest = Digest.of(data)
        self.store.put_document(data, digest, scope)
        return _described(RAW, digest, len(data), path)

    def _archive(self, files: Mapping[str, bytes], scope: str) -> dict[str, object]:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in sorted(files.items()):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        packed = buffer.getvalue()
        digest = Digest.of(packed)
        version = unpack.rules(Encoding.TAR)
        if not self.store.unpacked_path(digest, version).exists():
            half_made = Path(f"{self.store.root}/trash/{digest.hex}")
            bounds = unpack.Limits(bytes=1 << 30, entries=1000)
            blob = half_made.with_suffix(".blob")
            blob.write_bytes(packed)
            with contextlib.closing(Whole(blob)) as stream:
                layers.build(stream, Encoding.TAR, half_made, bounds, lambda: False)
            blob.unlink()
            self.store.commit_unpacked(half_made, digest, version, scope)
        else:
            self.store.admit(digest, scope)
        return _described(TAR, digest, len(packed), "packed")


def _claim(digest: Digest, scope: str) -> Claim:
    return Claim(digest.hex, ingests.RAW, ingests.name(digest, scope, ingests.RAW), 0)


def _described(kind: str, digest: Digest, size: int, path: str) -> dict[str, object]:
    return {
        "mediaType": kind,
        "digest": str(digest),
        "size": size,
        "annotations": {"org.cncf.model.filepath": path},
    }
