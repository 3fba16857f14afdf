"""JSON that is nested without end never uses up the stack."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.oci import jsontext
from modelmount.oci.jsontext import MAX_DEPTH, TooDeep

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_ordinary_documents_are_read_as_ever(value: object) -> None:
    assert jsontext.loads(json.dumps(value)) == value
    assert jsontext.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == value


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_endless_nesting_is_refused_before_it_is_read(opening: str) -> None:
    with pytest.raises(TooDeep):
        jsontext.loads(opening * 100_000)


def test_the_depth_is_what_is_counted() -> None:
    assert jsontext.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(TooDeep):
        jsontext.loads("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    assert len(jsontext.loads("[" + ",".join(["[]"] * 1000) + "]")) == 1000


@pytest.mark.parametrize("text", ["[" * 1000, '\\"' + "[" * 1000, "\\\\\\" + '"' + "{" * 500])
def test_brackets_in_strings_dont_count(text: str) -> None:
    assert jsontext.loads(json.dumps([text])) == [text]


@pytest.mark.parametrize("text", ["]" * 1000, '\\"' + "]" * 1000], ids=["plain", "escaped"])
def test_brackets_in_strings_hide_none(text: str) -> None:
    """Closing ones, each between two that open."""
    deep = "".join(f"[{json.dumps(text)}," for _ in range(MAX_DEPTH + 1))
    with pytest.raises(TooDeep):
        jsontext.loads(deep + "0" + "]" * (MAX_DEPTH + 1))


ODD = st.text(alphabet='\\"[]{}n', max_size=8)


@given(st.lists(ODD, min_size=1, max_size=4))
def test_no_text_hides_depth_or_makes_it(texts: list[str]) -> None:
    flat = [each * 50 for each in texts]
    assert jsontext.loads(json.dumps(flat)) == flat
    deep = json.dumps(texts)
    for _ in range(MAX_DEPTH):
        deep = f"[{json.dumps(texts[0])}, {deep}, {json.dumps(texts[-1])}]"
    with pytest.raises(TooDeep):
        jsontext.loads(deep)


@pytest.mark.parametrize("more", ['\\"', '"\\', '"', "\\\\"])
def test_a_text_that_never_ends_is_no_work(more: str) -> None:
    """Who began anew at each of its quotes would take hours, and hold everything else up."""
    with pytest.raises(ValueError, match=r"line 1 column"):
        jsontext.loads("[" + "[]," * MAX_DEPTH + '"' + more * (1 << 20))
