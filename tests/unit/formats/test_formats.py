"""Which format decides, and what no format lets through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelmount import formats
from modelmount.errors import BadArtifact
from modelmount.formats import layers, unsupported
from modelmount.oci import manifest as manifests
from modelmount.oci.manifest import Manifest
from tests.unit.oci.documents import WEIGHT, descriptor, document

TITLED = descriptor(b"w", "application/x", annotations={layers.TITLE: "model.bin"})
NAMED = descriptor(b"w", WEIGHT, annotations={layers.FILEPATHS[0]: "model.bin"})


def manifest(**more: Any) -> Manifest:
    found = manifests.parse(json.dumps(document(**more)).encode())
    assert isinstance(found, Manifest)
    return found


def test_the_catch_all_comes_last() -> None:
    anything = manifest(config=None, layers=[TITLED])
    assert [one.name for one in formats.FORMATS if one.matches(anything)] == [formats.FORMATS[-1].name]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"artifactType": "application/vnd.cncf.model.manifest.v1+json"}, "ModelPack", id="artifact-type"),
        pytest.param({"artifactType": "application/vnd.cnai.model.manifest.v1+json"}, "ModelPack", id="old-prefix"),
        pytest.param({}, "ModelPack", id="config-type"),
        pytest.param(
            {"artifactType": "application/x", "config": None, "layers": [NAMED]}, "ModelPack", id="layer-type"
        ),
        pytest.param({"artifactType": "application/x", "config": None}, "ORAS files", id="anything-else"),
    ],
)
def test_the_format_follows_from_declared_types(fields: dict[str, Any], expected: str) -> None:
    assert formats.decide(manifest(**{"layers": [TITLED]} | fields), None).format == expected


def test_artifacts_without_files_are_refused_with_their_type_made_printable() -> None:
    with pytest.raises(BadArtifact, match="is no model that can be mounted") as caught:
        formats.decide(
            manifest(artifactType="application/\x1b[31m" + "x" * 1000, config=None, layers=[descriptor()]), None
        )
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


def test_kinds_that_are_not_read_have_names_and_remedies_of_their_own() -> None:
    assert len({kind.name for kind in unsupported.KINDS}) == len(unsupported.KINDS)
    assert all(kind.remedy and kind.name in kind.refusal().message for kind in unsupported.KINDS)
