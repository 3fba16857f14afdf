"""What is left of an artifact, before and after its archives are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from modelmount import formats
from modelmount.errors import InvalidRequest
from modelmount.formats import selection as selections
from modelmount.formats.base import Encoding, File, Layer, Layout, Naming
from modelmount.formats.selection import EVERYTHING, Selection
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest

HUB = (
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "tokenizer.json",
    "original/consolidated.00.pth",
    "original/params.json",
    "onnx/model.onnx",
    "2_Dense/pytorch_model.bin",
    "2_Dense/config.json",
)
"""Files as a repository of Hugging Face has them."""


def layer(path: str | None, encoding: Encoding = Encoding.RAW, **more: object) -> Layer:
    descriptor = Descriptor("application/x", Digest.of(f"{path} {encoding}".encode()), 7)
    return replace(Layer(descriptor, encoding, path, Naming.ROOT), **more)  # type: ignore[arg-type]


def needed(selection: Selection, *layers: Layer, lift: str | None = None) -> list[str | None]:
    return [one.path for one in selections.needed(Layout("test", layers, lift=lift), selection).layers]


def shown(selection: Selection, names: Sequence[str], directories: Sequence[str] = ()) -> list[str]:
    files = [File(name, "source", 7) for name in names]
    found, left, _ = selections.selected(files, directories, selection)
    return sorted([file.path for file in found] + [f"{directory}/" for directory in left])


def found_names(found: Sequence[str | None]) -> list[str]:
    return [name for name in found if name is not None]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (
            Selection(include=("*.json",)),
            [
                "2_Dense/config.json",
                "config.json",
                "model.safetensors.index.json",
                "original/params.json",
                "pytorch_model.bin.index.json",
                "tokenizer.json",
            ],
        ),
        (Selection(include=("/*.json",), exclude=("*index*",)), ["config.json", "tokenizer.json"]),
        (Selection(include=("original/",)), ["original/consolidated.00.pth", "original/params.json"]),
        (Selection(path="original"), ["consolidated.00.pth", "params.json"]),
        (Selection(path="original", include=("/*.json",)), ["params.json"]),
        (Selection(path="/original/", exclude=("*.json",)), ["consolidated.00.pth"]),
        (Selection(exclude=("*", "!tokenizer.json")), ["tokenizer.json"]),
        (
            Selection(files="vllm"),
            [
                "2_Dense/config.json",
                "2_Dense/pytorch_model.bin",
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
            ],
        ),
        (
            Selection(files="vllm", exclude=("*.safetensors",), include=("*.bin", "*.pth")),
            ["2_Dense/pytorch_model.bin", "original/consolidated.00.pth", "pytorch_model.bin"],
        ),
    ],
)
def test_a_selection_shows_these_files_and_pulls_no_others(selection: Selection, expected: list[str]) -> None:
    assert shown(selection, HUB) == expected
    start = selection.path.strip("/")
    raw = needed(selection, *(layer(name) for name in HUB))
    assert sorted(found_names(raw)) == sorted(f"{start}/{name}" if start else name for name in expected)


def test_what_was_left_out_for_vllm_is_said_once_and_nothing_else_is() -> None:
    layout = Layout("test", tuple(layer(name) for name in HUB), ("before",))
    warnings = selections.needed(layout, Selection(files="vllm")).warnings
    assert warnings[0] == "before"
    assert "6, for example 'onnx/model.onnx'" in warnings[1]
    assert selections.needed(layout, Selection(exclude=("*.bin",))).warnings == ("before",)


def test_weights_without_safetensors_beside_them_are_all_kept() -> None:
    names = [name for name in HUB if not name.endswith(".safetensors")]
    assert shown(Selection(files="vllm"), names) == sorted(names)


ARCHIVE = Encoding.TAR_GZIP


@pytest.mark.parametrize(
    ("selection", "archive", "expected"),
    [
        pytest.param(Selection(include=("*.json",)), layer("a.bin", ARCHIVE, is_single=True), False, id="single-file"),
        pytest.param(Selection(include=("*.bin",)), layer("a.bin", ARCHIVE, is_single=True), True, id="single-wanted"),
        pytest.param(Selection(include=("*.json",)), layer("config", ARCHIVE), True, id="a-hint-says-nothing"),
        pytest.param(Selection(exclude=("config",)), layer("config", ARCHIVE), True, id="nor-when-excluded"),
        pytest.param(Selection(exclude=("tok/",)), layer("tok", ARCHIVE, within="tok"), False, id="excluded-directory"),
        pytest.param(Selection(exclude=("a",)), layer("a/tok", ARCHIVE, within="a/tok"), False, id="excluded-above"),
        pytest.param(Selection(exclude=("tok/*",)), layer("tok", ARCHIVE, within="tok"), True, id="its-files-excluded"),
        pytest.param(Selection(include=("*.bin",)), layer("tok", ARCHIVE, within="tok"), True, id="may-have-included"),
        pytest.param(Selection(path="model"), layer("tok", ARCHIVE, within="tok"), False, id="beside-the-path"),
        pytest.param(Selection(path="tok"), layer("tokens", ARCHIVE, within="tokens"), False, id="longer-name"),
        pytest.param(Selection(path="tok/sub"), layer("tok", ARCHIVE, within="tok"), True, id="above-the-path"),
        pytest.param(Selection(path="tok"), layer("tok/sub", ARCHIVE, within="tok/sub"), True, id="below-the-path"),
        pytest.param(Selection(path="tok"), layer("tok", ARCHIVE, within="tok"), True, id="the-path"),
        pytest.param(Selection(include=("*.json",)), layer("a.bin", Encoding.RAW_ZSTD), False, id="compressed-file"),
    ],
)
def test_archives_are_pulled_unless_it_is_known_that_they_hold_nothing(
    selection: Selection, archive: Layer, expected: bool
) -> None:
    known = layer("tok/sub/keep.json"), layer("model/keep.json"), layer("keep.bin")
    assert (archive.path in needed(selection, archive, *known)) is expected


def test_where_a_directory_may_yet_become_the_root_everything_is_pulled() -> None:
    paths = ["models/a.bin", "models/b.json"]
    assert needed(Selection(path="x"), *(layer(path) for path in paths), lift="models") == paths


def test_directories_without_files_follow_their_selection() -> None:
    assert shown(Selection(exclude=("gone",)), ["a/x"], ["a", "empty", "gone", "b/gone"]) == ["a/", "a/x", "empty/"]
    assert shown(Selection(path="a"), ["a/x"], ["a", "a/empty", "b"]) == ["empty/", "x"]
    assert shown(Selection(include=("x",)), ["a/x"], ["a", "empty"]) == ["a/x"]


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        (Selection(path="models"), r"no directory 'models' \(path\); it has '2_Dense', 'config.json', "),
        (Selection(path="config.json"), r"no directory 'config.json' \(path\)"),
        (Selection(include=("*.gguf",)), "left to show by include; it has '2_Dense/config.json', .*, …"),
        (Selection(path="original", exclude=("*",)), "left to show by path and exclude; it has 'original/consol"),
    ],
)
def test_a_selection_of_nothing_is_refused_with_what_there_is(selection: Selection, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        selections.needed(Layout("test", tuple(layer(name) for name in HUB)), selection)
    with pytest.raises(InvalidRequest, match=told):
        shown(selection, HUB)


MANY = tuple(f"**/*/**/*/**/*/b{number}" for number in range(64))


@pytest.mark.parametrize("selection", [Selection(include=MANY), Selection(exclude=MANY)])
def test_patterns_that_would_take_hours_on_an_artifacts_names_are_refused(selection: Selection) -> None:
    """A volume and its artifact may be one attacker's."""
    deep = "/".join("a" * 31)
    few, many = ([File(f"{deep}/{number}", "x", 1) for number in range(count)] for count in (2, 5000))
    with pytest.raises(InvalidRequest, match="more patterns than can be tried on 5000 names"):
        selections.selected(many, (), selection)
    if selection.exclude:
        assert len(selections.selected(few, (), selection)[0]) == 2
        with pytest.raises(InvalidRequest, match="more patterns than can be tried"):
            selections.selected(few, [f"{deep}/{number}" for number in range(5000)], selection)


def test_hugging_faces_cache_has_its_files_where_the_hub_looks() -> None:
    selection = Selection(hf_repo="org/name", sub_dir="hub")
    found, directories = selections.shaped([File("a/b", "s", 7)], {"empty"}, selection, "0123")
    base = "hub/models--org--name"
    revision = Digest.of(b"0123").hex
    assert found == [File(f"{base}/snapshots/0123/a/b", "s", 7), File(f"{base}/refs/main", revision, 4)]
    assert directories == {f"{base}/snapshots/0123/empty"}
    assert selections.documents(selection, "0123") == {"models--org--name/refs/main": b"0123"}


def test_a_sub_directory_holds_everything_and_its_parents_are_there() -> None:
    found = formats.place(Layout("test", (layer("a/b"),)), {}, {}, Selection(sub_dir="x/y"))
    assert [file.path for file in found.files] == ["x/y/a/b"]
    assert found.directories == ("x", "x/y", "x/y/a")


def test_selections_have_keys_of_their_own() -> None:
    chosen = [
        EVERYTHING,
        Selection(path="a"),
        Selection(sub_dir="a"),
        Selection(include=("a",)),
        Selection(include=("a", "b")),
        Selection(include=('a","b',)),
        Selection(exclude=("a",)),
        Selection(files="vllm"),
        Selection(unpack="never"),
        Selection(unpack="always"),
        Selection(hf_repo="a"),
    ]
    assert EVERYTHING.key == ""
    assert len({selection.key for selection in chosen}) == len(chosen)
