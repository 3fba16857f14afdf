"""Attributes that choose files, shape and index entry. Rows R9, R10 and R12 of the threat table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.errors import InvalidRequest
from modelmount.formats import ANY, Choice
from modelmount.formats.selection import EVERYTHING, Selection
from modelmount.oci.descriptor import Platform
from modelmount.volumes import choices
from modelmount.volumes.volume import VolumeSpec

MODEL = {"model": "harbor.example.com/llm/llama3-70b:v1"}


def spec(**attributes: str) -> VolumeSpec:
    return VolumeSpec.parse({**MODEL, **attributes})


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, EVERYTHING),
        ({"include": "*.json"}, Selection(include=("*.json",))),
        ({"include": "*.json\n\n# comment\n*.safetensors  \n"}, Selection(include=("*.json", "*.safetensors"))),
        ({"include": '["*.json", "a b"]'}, Selection(include=("*.json", "a b"))),
        ({"include": "[]"}, EVERYTHING),
        ({"exclude": "[ab].txt"}, Selection(exclude=("[ab].txt",))),
        ({"exclude": "[ab].txt\n[c].txt"}, Selection(exclude=("[ab].txt", "[c].txt"))),
        ({"path": "/models/tiny/"}, Selection(path="models/tiny")),
        ({"path": "./a"}, Selection(path="a")),
        ({"path": "/"}, Selection(path="/")),
        ({"path": ""}, EVERYTHING),
        ({"subDir": "model"}, Selection(sub_dir="model")),
        ({"files": "vllm"}, Selection(files="vllm")),
        ({"files": "all", "unpack": "auto", "layout": "flat"}, EVERYTHING),
        ({"unpack": "never"}, Selection(unpack="never")),
        ({"layout": "hf-cache", "hfRepo": "org/name-1.5_B"}, Selection(hf_repo="org/name-1.5_B")),
        ({"layout": "hf-cache", "hfRepo": "gpt2"}, Selection(hf_repo="gpt2")),
    ],
)
def test_attributes_mean_a_selection(attributes: dict[str, str], expected: Selection) -> None:
    assert spec(**attributes).selection == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, ANY),
        ({"platform": "linux/arm64"}, Choice(Platform("linux", "arm64"))),
        ({"platform": "linux/arm64/v8"}, Choice(Platform("linux", "arm64", "v8"))),
        ({"select": "quantization=Q4_K_M"}, Choice(select=(("quantization", "Q4_K_M"),))),
        ({"select": "b=1=2\na="}, Choice(select=(("a", ""), ("b", "1=2")))),
        ({"select": '["a=x\\ny"]'}, Choice(select=(("a", "x\ny"),))),
    ],
)
def test_attributes_mean_a_choice(attributes: dict[str, str], expected: Choice) -> None:
    assert spec(**attributes).choice == expected


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        pytest.param({"include": "[1]"}, "'include' must be a JSON array of strings", id="R13-numbers"),
        pytest.param({"include": '{"a": 1}\n["x"]'}, "", id="braces-are-text"),
        pytest.param({"include": '["a"'}, "", id="an-open-bracket-is-a-pattern"),
        pytest.param({"include": "[a]"}, "'include' must be a JSON array", id="neither-one-nor-the-other"),
        pytest.param({"exclude": "../x"}, "'exclude': the pattern '../x' has", id="parent"),
        pytest.param({"exclude": "!"}, "'exclude': the pattern '!' names nothing", id="nothing"),
        pytest.param({"exclude": "a" * 257}, "longer than 256", id="R12-long"),
        pytest.param({"exclude": "\n".join("ab" * 65)}, "has 130 patterns; at most 64", id="R12-many"),
        pytest.param({"path": "../x"}, "'path': '../x' has the component '..'", id="path-above"),
        pytest.param({"path": "a\0b"}, "'path': 'a\\x00b' contains the character U+0000", id="path-nul"),
        pytest.param({"subDir": "/abs"}, "'subDir': '/abs' is absolute", id="absolute"),
        pytest.param({"subDir": ".modelmount"}, "reserved for the driver", id="reserved"),
        pytest.param({"files": "VLLM"}, "'files' must be one of all, vllm, not 'VLLM'", id="files"),
        pytest.param({"unpack": "yes"}, "'unpack' must be one of auto, always, never", id="unpack"),
        pytest.param({"layout": "ollama"}, "'layout' must be one of flat, hf-cache", id="layout"),
        pytest.param({"layout": "hf-cache"}, "needs the volume attribute 'hfRepo'", id="no-repository"),
        pytest.param({"hfRepo": "a/b"}, "for `layout: hf-cache` only", id="no-layout"),
        *(
            pytest.param({"layout": "hf-cache", "hfRepo": name}, "'hfRepo' must be like org/name", id=f"hf-{number}")
            for number, name in enumerate(
                ("../x", "a/b/c", "a--b/c", "a..b", "/a", "a/", "a/b\n", ".a", "a" * 97, "é/b")
            )
        ),
        *(
            pytest.param({"platform": text}, "'platform' must be like linux/arm64", id=f"platform-{number}")
            for number, text in enumerate(("linux", "Linux/amd64", "linux/amd64/v8/x", "linux/amd64\n", "/", "a/b/c/d"))
        ),
        *(
            pytest.param({"select": text}, "'select' must have each annotation once", id=f"select-{number}")
            for number, text in enumerate(("a", "=b", "a=b\na=c", '["a"]'))
        ),
    ],
)
def test_what_is_no_choice_is_refused_by_its_key(attributes: dict[str, str], told: str) -> None:
    if not told:
        spec(**attributes)
        return
    with pytest.raises(InvalidRequest) as caught:
        spec(**attributes)
    assert told in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


def test_two_spellings_of_one_selection_are_the_same_volume() -> None:
    assert spec(include='["*.json"]') == spec(include="*.json\n")
    assert spec(path="/a/") == spec(path="a")
    assert spec(select="b=2\na=1") == spec(select='["a=1", "b=2"]')
    assert spec(include="*.json") != spec(exclude="*.json")


@given(st.dictionaries(st.sampled_from(choices.KEYS), st.text(max_size=50) | st.sampled_from(["[]", "[", "hf-cache"])))
def test_any_text_is_understood_or_refused(attributes: Mapping[str, Any]) -> None:
    try:
        found = spec(**attributes)
    except InvalidRequest as e:
        assert e.message.isprintable()
    else:
        assert json.loads(found.selection.key or "{}") is not None
        assert VolumeSpec.parse({**MODEL, **attributes}) == found
