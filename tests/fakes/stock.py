"""A store that is full: many models of many small files, written by the store's own code, without a network.

Blobs and their scopes come from `Store.put_group`, facts from `verdicts.record_facts`, trees and views from
`trees.build`: what a pull calls once its bytes are verified. Only the record of what a reference means is written
here, with the same words as the resolver's.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from modelmount.config import Limits
from modelmount.content.store import Store
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest
from modelmount.oci.reference import Reference
from modelmount.pull import plan as plans
from modelmount.pull import verdicts
from modelmount.pull.resolver import Ref
from modelmount.snapshots import tree as trees
from modelmount.system import atomic

REGISTRY = "registry.example.com"
RAW = "application/vnd.cncf.model.weight.v1.raw"
FILES_A_DIRECTORY = 100
_CONFIG = b"{}"


def reference(number: int) -> Reference:
    """What the model of this number is called."""
    return Reference.parse(f"{REGISTRY}/stock/model-{number:04d}:v1")


def fill(root: Path, numbers: range, files: int) -> Iterator[int]:
    """Put the models of these numbers into the store at `root`, each with so many raw files of its own, some bytes
    each; yields each number once its model is complete. A driver may run on the store meanwhile.
    """
    store = Store(root)
    for number in numbers:
        _put(store, number, files)
        yield number


def _put(store: Store, number: int, files: int) -> None:
    named = reference(number)
    scope = named.repository.scope
    contents = {_path(n): f"model {number}, file {n}\n".encode() for n in range(files)}
    described = [_descriptor(RAW, data, {"org.cncf.model.filepath": path}) for path, data in contents.items()]
    document = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": manifests.OCI_MANIFEST,
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": _descriptor("application/vnd.cncf.model.config.v1+json", _CONFIG),
            "layers": described,
        }
    ).encode()
    digest = Digest.of(document)
    blobs = {Digest.of(data): data for data in (*contents.values(), _CONFIG, document)}
    store.put_group(blobs, scope)
    parsed = manifests.parse(document)
    assert isinstance(parsed, Manifest)
    plan = plans.make_plan(parsed, _CONFIG, Limits())
    verdicts.record_facts(store, plan.facts(digest))
    known = Ref(str(named), str(digest), str(digest), time.time())
    name = hashlib.sha256(str(named).encode()).hexdigest()
    with store.locks.shared():
        atomic.write_file(f"{store.root}/refs/{name}", msgspec.json.encode(known))
        placement = plan.placement(store, scope)
        assert placement is not None
        trees.build(store, scope, digest, "", placement)


def _path(number: int) -> str:
    return f"part-{number // FILES_A_DIRECTORY:03d}/file-{number:05d}.bin"


def _descriptor(kind: str, data: bytes, annotations: dict[str, str] | None = None) -> dict[str, object]:
    described: dict[str, object] = {"mediaType": kind, "digest": str(Digest.of(data)), "size": len(data)}
    return described | ({"annotations": annotations} if annotations else {})
