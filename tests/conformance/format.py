"""What every artifact format owes: a class with its samples subclasses the suite, and these tests run for it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from modelmount import formats
from modelmount.errors import BadArtifact
from modelmount.formats import layers, paths
from modelmount.formats.base import Encoding, Format, Layer

from .artifact import FILEPATH, METADATA, TITLE, Artifact, decide, read, tree

HOSTILE_PATHS = [
    pytest.param("../x", id="P1-parent"),
    pytest.param("a/../../x", id="P1-parent-inside"),
    pytest.param("/abs", id="P1-absolute"),
    pytest.param("a//b", id="P1-empty-component"),
    pytest.param(".", id="P1-dot"),
    pytest.param("a/", id="P1-slash-at-the-end"),
    pytest.param("a\0b", id="P2-nul"),
    pytest.param("a\nb", id="P2-newline"),
    pytest.param("\u202egpj", id="P2-right-to-left"),
    pytest.param("x" * 256, id="P3-component-of-256-bytes"),
    pytest.param(".modelmount", id="P6-reserved"),
    pytest.param(".wh.x", id="P8-whiteout"),
]
PATH_ANNOTATIONS = (FILEPATH, "org.cnai.model.filepath", TITLE)
METADATA_ANNOTATIONS = (METADATA, "org.cnai.model.file.metadata+json", "org.cnai.model.file.metadata")


@dataclass(frozen=True, slots=True)
class Sample:
    """An artifact as a producer writes it and the tree it must become: content by path, None for directories.
    Directories above files need not be listed.
    """

    id: str
    artifact: Artifact
    tree: Mapping[str, bytes | None]
    warnings: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """An artifact of the format that must be refused with these words, when it is decided or when it is placed."""

    id: str
    artifact: Artifact
    match: str


class FormatConformance:
    """Subclasses name the format and give at least one sample of each producer."""

    format: ClassVar[Format]
    samples: ClassVar[tuple[Sample, ...]]
    refused: ClassVar[tuple[Refused, ...]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        cls = metafunc.cls
        assert cls is not None
        for name, values in (("sample", cls.samples), ("refusal", cls.refused)):
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values, ids=[value.id for value in values])

    def test_it_is_one_of_the_formats_under_a_name_of_its_own(self) -> None:
        assert [one.name for one in formats.FORMATS].count(self.format.name) == 1

    def test_a_sample_is_decided_by_this_format(self, sample: Sample) -> None:
        assert self.format.matches(sample.artifact.manifest())
        assert decide(sample.artifact).format == self.format.name

    def test_a_sample_becomes_its_tree(self, sample: Sample, tmp_path: Path) -> None:
        above = {parent: None for path in sample.tree for parent in paths.parents(path)}
        assert tree(sample.artifact, tmp_path) == above | dict(sample.tree)

    def test_warnings_are_sentences_and_few(self, sample: Sample) -> None:
        warnings = decide(sample.artifact).warnings
        assert len(warnings) == sample.warnings
        assert all(warning.isprintable() and len(warning) < 500 for warning in warnings)

    def test_a_refusal_names_its_cause(self, refusal: Refused, tmp_path: Path) -> None:
        with pytest.raises(BadArtifact, match=refusal.match) as caught:
            tree(refusal.artifact, tmp_path)
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 1000

    def test_the_config_is_needed_only_where_the_format_says_so(self, sample: Sample) -> None:
        manifest, config = sample.artifact.manifest(), sample.artifact.config
        content = config.content if config else None
        assert self.format.layout(manifest, content) == self.format.layout(manifest, content)
        if not self.format.reads_config:
            assert self.format.layout(manifest, b"\xff" * 10) == self.format.layout(manifest, None)

    def test_what_it_says_of_the_model_is_bounded_text_whatever_the_config_is(self, sample: Sample) -> None:
        ways: dict[str, Any] = {}
        for way in self.format.facts.values():
            inner = ways
            for key in way[:-1]:
                inner = inner.setdefault(key, {})
            inner[way[-1]] = ["x" * 1000, 1.5, {"a": 1}, None, True]
        manifest = sample.artifact.manifest()
        assert formats.describe(manifest, json.dumps(ways).encode()).keys() >= self.format.facts.keys()
        for config in (json.dumps(ways).encode(), b"\xff", b"[]", b"[" * 100_000, None, _config(sample.artifact)):
            assert all(0 < len(text) <= 201 for text in formats.describe(manifest, config).values())

    def test_a_layout_names_the_manifests_own_blobs_and_checked_paths_only(self, sample: Sample) -> None:
        manifest = sample.artifact.manifest()
        for layer in decide(sample.artifact).layers:
            assert layer.descriptor in manifest.layers
            assert layer.path is None or paths.check(layer.path) == layer.path
            assert layer.path is not None or layer.encoding.is_archive

    @pytest.mark.parametrize("path", HOSTILE_PATHS)
    def test_no_hostile_name_gets_through(self, sample: Sample, path: str) -> None:
        for number, layer in enumerate(sample.artifact.layers):
            named = _renamed(sample.artifact, number, "named/here")
            document = _renamed(sample.artifact, number, path)
            if any(str(one.descriptor.digest) == layer.digest and one.path == "named/here" for one in _raw(named)):
                with pytest.raises(BadArtifact, match="file name"):
                    formats.decide(read(document), _config(sample.artifact))
            else:
                require_verdict(document)

    def test_two_files_at_one_path_are_refused(self, sample: Sample) -> None:
        for layer in _raw(sample.artifact.document(), _config(sample.artifact))[:1]:
            other = {"digest": f"sha256:{'0' * 64}", "size": 1}
            document = sample.artifact.document()
            key = "layers" if "layers" in document else "blobs"
            twin = next(one for one in document[key] if one["digest"] == str(layer.descriptor.digest))
            document[key].append(copy.deepcopy(twin) | other)
            if layers.claimed_path(layer.descriptor) == layer.path and not layer.descriptor.name:
                with pytest.raises(BadArtifact, match="different bytes"):
                    formats.decide(read(document), _config(sample.artifact))
            else:  # names are given by position
                found = _raw(document, _config(sample.artifact))
                assert len({one.path for one in found}) == len({(one.path, one.descriptor.digest) for one in found})

    @pytest.mark.parametrize(
        "spoil",
        [
            pytest.param(lambda layer: layer.pop("annotations", None), id="no-annotations"),
            pytest.param(lambda layer: layer.update(annotations={TITLE: ""}), id="empty-title"),
            pytest.param(lambda layer: layer.update(mediaType="application/x.new"), id="unknown-type"),
            pytest.param(lambda layer: layer.update(mediaType="x.tar+lz4"), id="unknown-compression"),
            pytest.param(lambda layer: layer.update(mediaType="\x1b;;"), id="type-of-junk"),
            pytest.param(lambda layer: layer.update(annotations={FILEPATH: "a" * 100_000}), id="endless-path"),
            pytest.param(
                lambda layer: layer.update(annotations={"org.cncf.model.file.metadata+json": "[" * 50_000}),
                id="nested-metadata",
            ),
        ],
    )
    def test_a_spoilt_layer_is_read_or_refused(self, sample: Sample, spoil: Callable[[dict[str, Any]], Any]) -> None:
        for descriptor, document in _each_layer(sample.artifact):
            spoil(descriptor)
            self.format.matches(read(document))
            require_verdict(document)

    def test_an_artifact_that_declares_nothing_is_read_or_refused(self, sample: Sample) -> None:
        for key in ("config", "artifactType"):
            document = sample.artifact.document()
            document.pop(key, None)
            self.format.matches(read(document))
            require_verdict(document)


def _each_layer(artifact: Artifact) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each layer's descriptor within a fresh document, to be changed."""
    for number in range(len(artifact.layers)):
        document = artifact.document()
        yield document["layers" if "layers" in document else "blobs"][number], document


def _renamed(artifact: Artifact, number: int, path: str) -> dict[str, Any]:
    """The document with `path` wherever layer `number` names its file."""
    document = artifact.document()
    descriptor = document["layers" if "layers" in document else "blobs"][number]
    annotations = descriptor.get("annotations", {})
    annotations.update({key: path for key in PATH_ANNOTATIONS if key in annotations})
    annotations.update({key: json.dumps({"name": path}) for key in METADATA_ANNOTATIONS if key in annotations})
    if "name" in descriptor:
        descriptor["name"] = path
    return document


def _config(artifact: Artifact) -> bytes | None:
    return artifact.config.content if artifact.config else None


def _raw(document: Mapping[str, Any], config: bytes | None = None) -> list[Layer]:
    """The layers that are files; none where the artifact is refused."""
    try:
        found = formats.decide(read(document), config).layers
    except BadArtifact:
        return []
    return [layer for layer in found if layer.encoding is Encoding.RAW]


def require_verdict(document: Mapping[str, Any]) -> None:
    """A layout whose paths are checked, or BadArtifact in words that can be shown."""
    try:
        layout = formats.decide(read(document), None)
    except BadArtifact as e:
        assert e.message.isprintable()
        assert len(e.message) < 1000
        return
    for layer in layout.layers:
        assert layer.path is None or paths.check(layer.path) == layer.path
