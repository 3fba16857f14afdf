"""Descriptors are read strictly: what a later room takes on trust is decided here."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from modelmount.errors import BadArtifact
from modelmount.oci.descriptor import MAX_SIZE, Descriptor, Platform
from modelmount.oci.digest import Digest

from .documents import WEIGHT, descriptor


def read(**more: Any) -> Descriptor:
    return Descriptor.read(descriptor(b"weights", **more), "layer 1")


def test_all_fields_that_anybody_reads_are_read() -> None:
    found = read(
        annotations={"org.opencontainers.image.title": "model.bin"},
        artifactType="application/x.model",
        name="config.json",
        platform={"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "6.1"},
    )
    assert found.media_type == WEIGHT
    assert found.digest == Digest.of(b"weights")
    assert found.size == 7
    assert found.annotations == {"org.opencontainers.image.title": "model.bin"}
    assert found.artifact_type == "application/x.model"
    assert found.name == "config.json"
    assert found.platform == Platform("linux", "arm64", "v8")
    assert str(found.platform) == "linux/arm64/v8"


def test_fields_nobody_wrote_are_absent() -> None:
    found = read(annotations=None, artifactType="", data=None)
    assert found.annotations == {}
    assert (found.artifact_type, found.name, found.platform, found.data) == (None, None, None, None)


def test_embedded_content_is_verified_and_kept() -> None:
    """M15."""
    assert read(data=base64.b64encode(b"weights").decode()).data == b"weights"


def test_only_the_empty_blob_has_size_zero() -> None:
    """M13."""
    empty = {"digest": f"sha256:{hashlib.sha256().hexdigest()}", "size": 0}
    assert read(**empty).size == 0


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"size": -1}, id="M13-negative-size"),
        pytest.param({"size": 0}, id="M13-size-0-and-a-digest-of-something"),
        pytest.param({"size": MAX_SIZE + 1}, id="M4-size-beyond-2^53"),
        pytest.param({"size": 1 << 64}, id="M4-size-2^64"),
        pytest.param({"size": 1e3}, id="M4-size-a-float"),
        pytest.param({"size": True}, id="M4-size-true"),
        pytest.param({"size": "7"}, id="M4-size-a-string"),
        pytest.param({"size": None}, id="M4-size-missing"),
        pytest.param({"digest": None}, id="digest-missing"),
        pytest.param({"digest": 5}, id="digest-a-number"),
        pytest.param({"digest": "sha256:../../x"}, id="digest-a-path"),
        pytest.param({"digest": "md5:d41d8cd98f00b204e9800998ecf8427e"}, id="digest-md5"),
        pytest.param({"mediaType": None}, id="media-type-missing"),
        pytest.param({"mediaType": ["x"]}, id="media-type-a-list"),
        pytest.param({"mediaType": "x" * 256}, id="media-type-too-long"),
        pytest.param({"artifactType": {}}, id="artifact-type-an-object"),
        pytest.param({"name": 1}, id="name-a-number"),
        pytest.param({"annotations": []}, id="M18-annotations-a-list"),
        pytest.param({"annotations": {"a": 1}}, id="M18-annotation-a-number"),
        pytest.param({"annotations": {"a": None}}, id="M18-annotation-null"),
        pytest.param({"platform": "linux/amd64"}, id="platform-a-string"),
        pytest.param({"platform": {"os": 1}}, id="platform-os-a-number"),
        pytest.param({"data": base64.b64encode(b"weighty").decode()}, id="M15-data-of-another-digest"),
        pytest.param({"data": base64.b64encode(b"weights and more").decode()}, id="M15-data-of-another-size"),
        pytest.param({"data": "%%%"}, id="M15-data-no-base64"),
        pytest.param({"data": "d2VpZ\nHRz"}, id="M15-data-with-a-newline"),
        pytest.param({"data": 5}, id="M15-data-a-number"),
        pytest.param({"data": "\u0664"}, id="M15-data-not-ascii"),
    ],
)
def test_a_descriptor_that_says_nothing_usable_is_refused_by_its_place(fields: dict[str, Any]) -> None:
    with pytest.raises(BadArtifact, match="layer 1"):
        read(**fields)


@pytest.mark.parametrize("value", [None, [], "sha256:00", 5])
def test_what_is_no_object_is_no_descriptor(value: object) -> None:
    with pytest.raises(BadArtifact, match="the config"):
        Descriptor.read(value, "the config")


def test_urls_are_nothing_anybody_could_fetch() -> None:
    """M16: there is no field for them, so the registry is the only place to get a blob from."""
    found = read(urls=["http://169.254.169.254/latest/meta-data"])
    assert "169.254" not in repr(found)


def test_embedded_content_stays_out_of_messages() -> None:
    assert "weights" not in repr(read(data=base64.b64encode(b"weights").decode()))


def test_annotations_cannot_be_changed() -> None:
    found = read(annotations={"a": "b"})
    with pytest.raises(TypeError):
        found.annotations["a"] = "c"  # type: ignore[index]
