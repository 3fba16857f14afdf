"""Manifests and indexes out of hostile bytes: one reading, or none."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.errors import BadArtifact
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Index, Manifest

from .documents import MODEL_CONFIG, descriptor, document, encoded, index

HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>"


def manifest(fields: object, media_type: str | None = None) -> Manifest:
    found = manifests.parse(encoded(fields), media_type)
    assert isinstance(found, Manifest)
    return found


def refused(fields: object, match: str | None = None) -> str:
    data = fields if isinstance(fields, bytes) else encoded(fields)
    with pytest.raises(BadArtifact, match=match) as caught:
        manifests.parse(data)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000
    return caught.value.message


def test_a_manifest_is_read() -> None:
    found = manifest(document(artifactType="application/x.model", annotations={"a": "b"}))
    assert found.media_type == manifests.OCI_MANIFEST
    assert found.artifact_type == "application/x.model"
    assert found.config is not None
    assert found.config.media_type == MODEL_CONFIG
    assert [layer.digest for layer in found.layers] == [Digest.of(b"weights")]
    assert found.annotations == {"a": "b"}


def test_an_index_is_read() -> None:
    entry = descriptor(b"m", manifests.OCI_MANIFEST, platform={"os": "linux", "architecture": "amd64"})
    found = manifests.parse(encoded(index(manifests=[entry], artifactType="application/x.models")))
    assert isinstance(found, Index)
    assert found.artifact_type == "application/x.models"
    assert [str(one.platform) for one in found.manifests] == ["linux/amd64"]


@pytest.mark.parametrize("media_type", [manifests.OCI_MANIFEST, manifests.DOCKER_MANIFEST])
def test_manifests_of_oci_and_docker_have_layers(media_type: str) -> None:
    assert len(manifest(document(mediaType=media_type)).layers) == 1


@pytest.mark.parametrize("media_type", manifests.ARTIFACT_MANIFESTS)
def test_the_retired_artifact_manifests_have_blobs_and_neither_config_nor_schema_version(media_type: str) -> None:
    found = manifest({"mediaType": media_type, "artifactType": "application/x.model", "blobs": [descriptor(b"w")]})
    assert found.config is None
    assert found.kind_type == "application/x.model"
    assert len(found.layers) == 1


def test_the_type_of_an_artifact_is_its_configs_where_it_has_none() -> None:
    assert manifest(document()).kind_type == MODEL_CONFIG
    assert manifest(document(artifactType="application/x.model")).kind_type == "application/x.model"
    assert manifest(document(config=None)).kind_type is None


@pytest.mark.parametrize(
    ("declared", "fields", "expected"),
    [
        (manifests.DOCKER_MANIFEST, document(mediaType=None), manifests.DOCKER_MANIFEST),
        (manifests.OCI_MANIFEST + "; charset=utf-8", document(mediaType=None), manifests.OCI_MANIFEST),
        (None, document(mediaType=None), manifests.OCI_MANIFEST),
        ("application/json", document(mediaType=None), manifests.OCI_MANIFEST),
        ("text/plain", index(mediaType=None), manifests.OCI_INDEX),
        ("application/octet-stream", {"blobs": [descriptor(b"w")]}, manifests.ARTIFACT_MANIFESTS[0]),
        # M9: the document's own word counts.
        (manifests.OCI_INDEX, document(), manifests.OCI_MANIFEST),
        ("text/html", document(), manifests.OCI_MANIFEST),
    ],
)
def test_the_documents_own_type_counts_then_the_answers_then_its_shape(
    declared: str | None, fields: dict[str, Any], expected: str
) -> None:
    assert manifests.parse(encoded(fields), declared).media_type == expected


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        pytest.param(document(manifests=[]), "at once", id="M9-layers-and-manifests"),
        pytest.param(index(config=descriptor()), "at once", id="M9-manifests-and-config"),
        pytest.param(index(blobs=[]), "at once", id="M9-manifests-and-blobs"),
        pytest.param(document(blobs=[descriptor(b"other")]), "both", id="M9-layers-and-blobs"),
        pytest.param(document(mediaType=manifests.OCI_INDEX), "built otherwise", id="M9-index-by-type-only"),
        pytest.param(index(mediaType=manifests.OCI_MANIFEST), "built otherwise", id="M9-manifest-by-type-only"),
        pytest.param(document(schemaVersion=1), "schema 1", id="M10-schema-1"),
        pytest.param({"schemaVersion": 1, "fsLayers": [], "history": []}, "schema 1", id="M10-schema-1-untyped"),
        pytest.param(
            {"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"}, "schema 1", id="M10-signed"
        ),
        pytest.param(document(schemaVersion=None), "schemaVersion", id="M10-no-schema-version"),
        pytest.param(document(schemaVersion="2"), "schemaVersion", id="M10-schema-version-a-string"),
        pytest.param(document(schemaVersion=2.0), "schemaVersion", id="M10-schema-version-a-float"),
        pytest.param(document(mediaType="application/x.new"), "application/x.new", id="M10-unknown-type"),
        pytest.param(document(mediaType="\u202e\n" * 1000), "media type", id="M10-type-of-junk"),
        pytest.param(document(mediaType=5), "mediaType", id="M10-type-a-number"),
        pytest.param({}, "missing", id="M10-empty-object"),
        pytest.param(HTML, "is this a registry", id="M10-web-page"),
        pytest.param([document()], "not a JSON object", id="M10-list"),
        pytest.param(b"", "not valid JSON", id="M10-empty"),
        pytest.param(document(layers=[]), "nothing to mount", id="M12-no-layers"),
        pytest.param(document(layers=None), "nothing to mount", id="M12-layers-missing"),
        pytest.param(document(layers={}), "nothing to mount", id="M12-layers-an-object"),
        pytest.param(document(layers=[None]), "layer 1", id="M12-layer-null"),
        pytest.param(index(manifests=[]), "nothing to mount", id="M11-empty-index"),
        pytest.param(document(config=5), "config", id="M14-config-a-number"),
        pytest.param(document(annotations={"a": 1}), "annotations", id="M18-annotation-a-number"),
        pytest.param(document(artifactType=1), "artifactType", id="artifact-type-a-number"),
    ],
)
def test_what_could_be_read_in_two_ways_or_not_at_all_is_refused(fields: object, match: str) -> None:
    refused(fields, match)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        pytest.param(b" " * (manifests.MAX_DOCUMENT_BYTES + 1), "larger", id="M1-too-large"),
        pytest.param(b"[" * 100_000, "nested", id="M2-nested-lists"),
        pytest.param(b'{"a":' * 100_000, "nested", id="M2-nested-objects"),
        pytest.param(b'{"schemaVersion": 2, "layers": [], "layers": []}', "twice", id="M3-same-key-twice"),
        pytest.param(b'{"a": {"b": 1, "\\u0062": 2}}', "twice", id="M3-same-key-once-escaped"),
        pytest.param(b'{"size": NaN}', "NaN", id="M4-nan"),
        pytest.param(b'{"size": -Infinity}', "Infinity", id="M4-infinity"),
        pytest.param(b'{"size": ' + b"9" * 5000 + b"}", "not valid JSON", id="M4-5000-digits"),
        pytest.param('{"schemaVersion": 2}'.encode("utf-16"), "not valid JSON", id="M5-utf-16"),
        pytest.param(b"\xef\xbb\xbf{}", "not valid JSON", id="M5-byte-order-mark"),
        pytest.param(b'{"a": "\xff"}', "not valid JSON", id="M5-latin-1"),
        pytest.param(b'{"a": "\xed\xa0\x80"}', "not valid JSON", id="M6-surrogate-in-bytes"),
        pytest.param(b'{"a": ["\\ud800"]}', "surrogate", id="M6-half-a-pair"),
        pytest.param(b'{"\\udc00": 1}', "surrogate", id="M6-half-a-pair-in-a-key"),
        pytest.param(b'{"a": "\x00"}', "not valid JSON", id="M6-raw-nul"),
        pytest.param(b"{} {}", "not valid JSON", id="two-documents"),
        pytest.param(b"{'a': 1}", "not valid JSON", id="python"),
    ],
)
def test_json_that_readers_differ_on_is_refused(data: bytes, match: str) -> None:
    refused(data, match)


def test_json_is_otherwise_read_as_it_is() -> None:
    data = b'{"a": "\\ud83d\\ude00", "b": [1, 1.5, true, null], "c": "\xc3\xa9\\u0000"}'
    assert manifests.strict_json(data) == {"a": "\U0001f600", "b": [1, 1.5, True, None], "c": "é\0"}
    assert manifests.strict_json(b"[" * 100 + b"]" * 100)


def test_the_size_of_a_document_is_bounded_at_4_mib() -> None:
    """M1."""
    padding = manifests.MAX_DOCUMENT_BYTES - len(encoded(document(annotations={"a": ""})))
    assert manifest(document(annotations={"a": "x" * padding})).layers
    refused(document(annotations={"a": "x" * (padding + 1)}), "larger")


def test_layers_and_entries_are_counted_before_they_are_read() -> None:
    """M11, M12."""
    refused(document(layers=[{}] * (manifests.MAX_LAYERS + 1)), "at most")
    refused(index(manifests=[{}] * (manifests.MAX_ENTRIES + 1)), "at most")
    assert len(manifest(document(layers=[descriptor(b"w")] * manifests.MAX_LAYERS)).layers) == manifests.MAX_LAYERS


def test_a_blob_may_be_several_layers() -> None:
    """M12."""
    found = manifest(document(layers=[descriptor(b"w", name="a"), descriptor(b"w", name="b")]))
    assert [layer.name for layer in found.layers] == ["a", "b"]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(None, id="M14-missing"),
        pytest.param(descriptor(media_type="application/vnd.oci.empty.v1+json", data="e30="), id="M14-empty"),
        pytest.param(descriptor(media_type="application/vnd.unknown.config.v1+json"), id="M14-unknown-type"),
    ],
)
def test_a_config_is_not_needed(config: dict[str, Any] | None) -> None:
    assert manifest(document(config=config)).layers


def test_a_subject_adds_nothing() -> None:
    """M17."""
    spoilt = document(subject={"mediaType": "x", "digest": "sha256:nonsense", "size": -1})
    assert manifest(spoilt) == manifest(document())


def test_very_many_annotations_are_no_trouble() -> None:
    """M18: only known keys are ever read."""
    many = {f"k{number}": "\x1b" for number in range(100_000)}
    assert len(manifest(document(annotations=many)).annotations) == 100_000


def test_no_answer_of_a_stranger_is_repeated_at_length() -> None:
    message = refused(b"\x1b[31m" + b"<script>" * 10_000)
    assert "\x1b" not in message
    assert len(message) < 300


def most_layers() -> dict[str, Any]:
    """As many layers as are read, each with as much as 4 MiB have room for."""
    layer = {"mediaType": "m", "digest": f"sha256:{'a' * 64}", "size": 1}
    metadata = '{"name":"model.bin","size":1}'
    paths = (f"model-{number:05}.bin" for number in range(10_000))
    layers = [layer | {"annotations": {"org.cncf.model.filepath": path, "metadata": metadata}} for path in paths]
    return document(layers=layers)


def test_a_document_that_is_small_and_grows_in_memory_is_refused_before_it_is_read() -> None:
    assert len(manifest(most_layers()).layers) == 10_000
    for bomb in (b'{"x":[' + b'{"":0},' * 150_000 + b"0]}", b"[" * 150_000, b'{"":' * 150_000):
        assert "objects and lists" in refused(bomb)
    assert "fields" in refused(b"{" + b",".join(b'"%d":0' % n for n in range(300_000)) + b"}")


# -- properties

KEYS = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "layers", "blobs", "manifests", "annotations", "artifactType"]
)
VALUES = st.sampled_from(
    [None, 2, 1, "", manifests.OCI_MANIFEST, manifests.OCI_INDEX, [], {}, [descriptor()], descriptor(), {"a": "b"}]
) | st.text(max_size=5)


@given(st.sampled_from([document(), index()]), st.dictionaries(KEYS, VALUES, max_size=4))
def test_a_spoilt_document_is_read_or_refused(fields: dict[str, Any], spoilt: dict[str, Any]) -> None:
    try:
        found = manifests.parse(encoded(fields | spoilt))
    except BadArtifact as e:
        assert e.message.isprintable()
        return
    assert found.layers if isinstance(found, Manifest) else found.manifests


@given(st.binary(), st.none() | st.text())
def test_bytes_are_read_or_refused(data: bytes, media_type: str | None) -> None:
    with contextlib.suppress(BadArtifact):
        manifests.parse(data, media_type)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_json_that_any_writer_makes_is_read_back(value: object) -> None:
    assert manifests.strict_json(json.dumps(value).encode()) == value
