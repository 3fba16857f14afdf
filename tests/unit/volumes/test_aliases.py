"""Keys of model-csi-driver mean what they mean there, or are refused with a sentence."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from modelmount.errors import InvalidRequest
from modelmount.formats.patterns import Patterns
from modelmount.volumes import aliases
from modelmount.volumes.volume import VolumeSpec

MODEL = "harbor.example.com/llm/llama3-70b:v1"
NAMES = ["config.json", "model.safetensors", "model.safetensors.index.json", "original/x.safetensors", "onnx/m.bin"]


def there(**keys: str) -> dict[str, str]:
    """Attributes of the other driver: `exclude_file_patterns` for its key exclude-file-patterns."""
    return {aliases.PREFIX + key.replace("_", "-"): value for key, value in keys.items()}


def refusal(attributes: Mapping[str, str]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        VolumeSpec.parse(attributes)
    return caught.value.message


def left(**keys: str) -> list[str]:
    """Which of NAMES a volume with these keys shows."""
    exclude = Patterns(VolumeSpec.parse(there(reference=MODEL, **keys)).selection.exclude)
    return [name for name in NAMES if not exclude.matches(name)]


def test_our_own_attributes_stay_as_they_are() -> None:
    for attributes in ({}, {"model": MODEL, "exclude": "*.bin", "what": "ever"}):
        assert aliases.own(attributes) == attributes


@pytest.mark.parametrize(
    ("alias", "ours"),
    [
        (there(reference=MODEL), {}),
        (there(reference=f" {MODEL}\n", type="image"), {}),
        (there(reference=MODEL, exclude_file_patterns='["*.bin", "!keep.bin"]'), {"exclude": "*.bin\n!keep.bin"}),
        (there(reference=MODEL, exclude_file_patterns="[]", exclude_model_weights="false"), {}),
        (
            there(reference=MODEL, exclude_model_weights="true"),
            {"exclude": "*.safetensors\n/model.safetensors.index.json"},
        ),
        (there(reference=MODEL, check_disk_quota="true"), {}),
        (there(reference=MODEL, check_disk_quota="F"), {}),
    ],
)
def test_each_key_means_what_ours_mean(alias: dict[str, str], ours: dict[str, str]) -> None:
    assert VolumeSpec.parse(alias) == VolumeSpec.parse({"model": MODEL, **ours})


def test_every_key_is_taken() -> None:
    values = ("reference", MODEL), ("type", "image"), ("exclude_model_weights", "1"), ("exclude_file_patterns", "[]")
    attributes = there(**dict(values), check_disk_quota="0")
    assert set(attributes) == set(aliases.KEYS)
    VolumeSpec.parse(attributes)


def test_weights_are_what_they_are_there_and_patterns_come_before_them() -> None:
    assert left(exclude_model_weights="true") == ["config.json", "onnx/m.bin"]
    assert left(exclude_model_weights="true", exclude_file_patterns='["!model.safetensors", "*.bin"]') == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("ours", "alias"),
    [
        ({"model": f"oci://{MODEL}"}, there(reference=MODEL)),
        ({"exclude": "*.bin\n"}, there(reference=MODEL, exclude_file_patterns='["*.bin"]')),
    ],
)
def test_an_alias_beside_our_key_that_says_the_same_is_fine(ours: dict[str, str], alias: dict[str, str]) -> None:
    assert VolumeSpec.parse({**ours, **alias}) == VolumeSpec.parse(alias)


@pytest.mark.parametrize(
    ("attributes", "shown"),
    [
        (
            {"model": MODEL, **there(reference="ghcr.io/other/one:v1")},
            ("'model'", MODEL, "reference'", "ghcr.io/other"),
        ),
        ({"exclude": "*.pt", **there(exclude_file_patterns='["*.bin"]')}, ("'exclude'", "*.pt", "patterns'", "*.bin")),
        (
            {"exclude": "*.pt", **there(exclude_model_weights="true")},
            ("'exclude'", "*.pt", "weights'", "*.safetensors"),
        ),
    ],
)
def test_an_alias_beside_our_key_that_says_something_else_is_an_error_with_both(
    attributes: dict[str, str], shown: tuple[str, ...]
) -> None:
    message = refusal({"model": MODEL, **attributes})
    assert "say different things; remove one" in message
    assert [word for word in shown if word not in message] == []


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        (there(type="image"), "'model' is missing"),
        (there(reference="", type="image"), "'model' is missing"),
        (there(reference="qwen3:v1"), "host"),
        (there(reference=MODEL, type="file"), "must be image, not 'file'"),
        (there(reference=MODEL, exclude_model_weights="yes"), "must be true or false, not 'yes'"),
        (there(reference=MODEL, check_disk_quota="maybe"), "must be true or false, not 'maybe'"),
        (there(reference=MODEL, exclude_file_patterns="*.bin"), "must be a JSON array of strings"),
        (there(reference=MODEL, exclude_file_patterns="[1]"), "must be a JSON array of strings"),
        (there(reference=MODEL, exclude_file_patterns='["a/*.bin"]'), "has a slash"),
        (there(reference=MODEL, exclude_file_patterns='["***"]'), "three stars"),
        (there(reference=MODEL, mount_id="1"), "nothing is mounted at run time"),
        (there(reference=MODEL, node_ip="10.0.0.1"), "unknown volume attribute"),
        ({"other.example.com/reference": MODEL}, "unknown volume attribute"),
    ],
)
def test_what_means_something_else_here_is_refused(attributes: dict[str, str], told: str) -> None:
    assert told in refusal(attributes)


def test_records_have_the_model_as_its_author_wrote_it() -> None:
    assert aliases.model({"model": "a", **there(reference="b")}) == "a"
    assert aliases.model(there(reference="b")) == "b"
    assert aliases.model({}) is None
