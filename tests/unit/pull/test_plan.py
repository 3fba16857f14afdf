"""What a model needs, in which order, and what of it is missing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from modelmount.config import Limits
from modelmount.content.store import Store
from modelmount.errors import BadArtifact
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest
from modelmount.pull import plan as plans
from modelmount.pull.plan import Plan

SCOPE = "0" * 32
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
ARCHIVE = "application/vnd.cncf.model.weight.v1.tar"


def model(*layers: tuple[str, int, str], media_type: str = WEIGHT) -> Manifest:
    """A ModelPack manifest of (path, size, content that gives the digest)."""
    descriptors = [
        {
            "mediaType": media_type,
            "digest": f"sha256:{hashlib.sha256(content.encode()).hexdigest()}",
            "size": size,
            "annotations": {"org.cncf.model.filepath": path},
        }
        for path, size, content in layers
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.OCI_MANIFEST,
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
            "size": 2,
        },
        "layers": descriptors,
    }
    parsed = manifests.parse(json.dumps(document).encode())
    assert isinstance(parsed, Manifest)
    return parsed


def plan(manifest: Manifest, limits: Limits | None = None) -> Plan:
    return plans.make_plan(manifest, None, limits or Limits())


def test_small_files_come_first_then_weights_in_the_order_loaders_open_them() -> None:
    big = plans.SMALL_BYTES + 1
    made = plan(
        model(
            ("model-00010.safetensors", big, "a"),
            ("model-00002.safetensors", big, "b"),
            ("tokenizer.json", 10, "c"),
            ("config.json", 10, "d"),
        )
    )
    order = {f"sha256:{hashlib.sha256(c.encode()).hexdigest()}": c for c in "abcd"}
    assert "".join(order[str(part.descriptor.digest)] for part in made.parts) == "dcba"


def test_a_layer_under_two_names_is_one_part() -> None:
    made = plan(model(("a.bin", 10, "x"), ("b.bin", 10, "x")))
    assert len(made.parts) == 1
    assert made.total_bytes == 10


def test_one_digest_with_two_sizes_is_refused() -> None:
    with pytest.raises(BadArtifact, match="two sizes"):
        plan(model(("a.bin", 10, "x"), ("b.bin", 11, "x")))


def test_a_model_larger_than_the_admin_allows_is_refused_by_its_declared_size() -> None:
    with pytest.raises(BadArtifact, match=r"limits\.model_bytes"):
        plan(model(("a.bin", 600, "x"), ("b.bin", 600, "y")), Limits(model_bytes=1000))


def test_what_another_scope_has_is_missing_for_this_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.put_document(b"x", Digest.of(b"x"), "1" * 32)
    made = plan(model(("a.bin", 1, "x")))
    assert [part.descriptor.digest for part in made.missing(store, SCOPE)] == [Digest.of(b"x")]
    assert made.placement(store, SCOPE) is None
    assert made.missing(store, "1" * 32) == []
    placement = made.placement(store, "1" * 32)
    assert placement is not None
    assert [file.path for file in placement.files] == ["a.bin"]


def test_the_raw_form_of_an_archive_is_not_its_unpacked_form(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.put_document(b"x", Digest.of(b"x"), SCOPE)
    made = plan(model((".", 1, "x"), media_type=ARCHIVE))
    assert len(made.missing(store, SCOPE)) == 1


def test_a_compressed_archive_claims_room_for_itself_and_what_it_unpacks_to() -> None:
    (raw,) = plan(model(("a.bin", 100, "x"))).parts
    (archive,) = plan(model((".", 100, "x"), media_type=ARCHIVE)).parts
    (packed,) = plan(model((".", 100, "x"), media_type=ARCHIVE + "+zstd")).parts
    assert [part.claim(SCOPE).size for part in (raw, archive, packed)] == [100, 100, 200]
    assert raw.claim(SCOPE).ingest != archive.claim(SCOPE).ingest
