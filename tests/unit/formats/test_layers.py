"""What descriptors say: types and names, in all the ways producers write them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from modelmount.errors import BadArtifact
from modelmount.formats import layers
from modelmount.formats.base import Encoding
from modelmount.oci.descriptor import Descriptor
from tests.unit.oci.documents import descriptor

FILEPATH, OLD_FILEPATH = layers.FILEPATHS
METADATA = layers.METADATA[0]


def layer(annotations: Mapping[str, str] | None = None, media_type: str = "application/x", **more: str) -> Descriptor:
    return Descriptor.read(descriptor(b"x", media_type, annotations=dict(annotations or {}), **more), "layer 1")


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/vnd.cncf.model.weight.v1.raw", Encoding.RAW),
        ("application/vnd.cncf.model.weight.v1.tar", Encoding.TAR),
        ("application/vnd.cncf.model.weight.v1.tar+gzip", Encoding.TAR_GZIP),
        ("application/vnd.cncf.model.weight.v1.tar+zstd", Encoding.TAR_ZSTD),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Encoding.TAR_GZIP),
        ("application/vnd.kitops.modelkit.model.v1.raw+gzip", Encoding.RAW_GZIP),
        ("application/vnd.kitops.modelkit.model.v1.raw+zstd", Encoding.RAW_ZSTD),
        ("application/vnd.cncf.model.weight.v1.gguf", Encoding.RAW),
        ("application/octet-stream", Encoding.RAW),
        ("text/plain; charset=utf-8", Encoding.RAW),
        ("application/x-tar", Encoding.RAW),
        ("application/vnd.target", Encoding.RAW),
        ("Application/vnd.X.TAR+GZIP ; v=1", Encoding.TAR_GZIP),
        ("", Encoding.RAW),
    ],
)
def test_the_end_of_a_type_says_how_files_are_held(media_type: str, expected: Encoding) -> None:
    """M20: nothing is sniffed."""
    assert layers.encoding(media_type) is expected
    assert expected.is_archive == expected.value.startswith("tar")


@pytest.mark.parametrize("end", [".tar+lz4", ".tar+encrypted", ".tar+gzip+encrypted", ".tar.xz", ".raw+br"])
def test_compressions_nobody_reads_are_refused(end: str) -> None:
    with pytest.raises(BadArtifact, match="cannot be read"):
        layers.encoding(f"application/vnd.x{end}")


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/vnd.oci.image.layer.v1.tar", True),
        ("application/vnd.oci.image.layer.v1.tar+gzip", True),
        ("application/vnd.oci.image.layer.v1.tar+zstd", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True),
        ("application/vnd.docker.image.rootfs.diff.tar", True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", True),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", False),
        ("application/vnd.in-toto+json", False),
        ("application/vnd.cncf.model.weight.v1.tar", False),
    ],
)
def test_types_of_container_file_systems_are_known(media_type: str, expected: bool) -> None:
    assert layers.is_rootfs(media_type) is expected


def named(name: object) -> str:
    return json.dumps({"name": name})


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({FILEPATH: "a", OLD_FILEPATH: "b", METADATA: named("c"), layers.TITLE: "d"}, "a"),
        ({OLD_FILEPATH: "b", METADATA: named("c"), layers.TITLE: "d"}, "b"),
        ({METADATA: named("c"), layers.TITLE: "d"}, "c"),
        ({layers.METADATA[1]: named("c")}, "c"),
        ({layers.METADATA[2]: named("c")}, "c"),
        ({layers.TITLE: "d"}, "d"),
        ({FILEPATH: "", layers.TITLE: "d"}, "d"),
        ({METADATA: named(""), layers.TITLE: "d"}, "d"),
        ({METADATA: named(5), layers.TITLE: "d"}, "d"),
        ({METADATA: "[]", layers.TITLE: "d"}, "d"),
        ({METADATA: "{not json", layers.TITLE: "d"}, "d"),
        ({METADATA: "[" * 100_000, layers.TITLE: "d"}, "d"),
        ({METADATA: '{"name": "x", "name": "y"}', layers.TITLE: "d"}, "d"),
        ({METADATA: '{"name": "x"', layers.METADATA[1]: named("c")}, "c"),
        ({}, None),
    ],
)
def test_a_name_is_the_path_annotation_then_metadata_then_title(
    annotations: Mapping[str, str], expected: str | None
) -> None:
    assert layers.claimed_path(layer(annotations)) == expected


def test_the_descriptors_own_name_comes_last() -> None:
    assert layers.claimed_path(layer(name="config.json")) == "config.json"
    assert layers.claimed_path(layer({layers.TITLE: "a"}, name="config.json")) == "a"


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [("a/b", "a/b"), ("models/", "models"), ("./a", "a"), (".", None), ("./", None), ("../x", None), ("a\0", None)],
)
def test_an_archives_path_is_a_hint_and_never_a_reason_to_refuse(claimed: str, expected: str | None) -> None:
    assert layers.hint(layer({FILEPATH: claimed})) == expected


def test_layers_left_out_are_one_warning_however_many() -> None:
    assert layers.left_out([]) == ()
    (warning,) = layers.left_out([layer(media_type=f"application/x{number}\x1b") for number in range(1000)])
    assert "1000" in warning
    assert warning.isprintable()
    assert len(warning) < 300
