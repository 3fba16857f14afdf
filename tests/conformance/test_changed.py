"""Whatever stands anywhere in an artifact's manifest, it is read or refused: the samples of every format, changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount import formats
from modelmount.errors import BadArtifact

from . import test_container_images, test_formats, test_packagers
from .artifact import TITLE, read
from .format import FormatConformance, Sample, require_verdict

MODULES = (test_container_images, test_formats, test_packagers)
SUITES = [
    suite
    for module in MODULES
    for suite in vars(module).values()
    if isinstance(suite, type) and issubclass(suite, FormatConformance) and suite is not FormatConformance
]
SAMPLES = [pytest.param(sample, id=sample.id) for suite in SUITES for sample in suite.samples]
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", ".", "../x", "a/b", f"sha256:{'0' * 64}", "application/vnd.oci.image.layer.v1.tar+gzip"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["annotations", TITLE]) | TEXTS, inner),
    max_leaves=6,
)


def test_every_format_has_samples_here() -> None:
    assert {suite.format.__class__ for suite in SUITES} == {each.__class__ for each in formats.FORMATS}


@pytest.mark.parametrize("sample", SAMPLES)
@given(data=st.data())
@hypothesis.settings(max_examples=25)
def test_whatever_stands_anywhere_in_it_it_is_read_or_refused(sample: Sample, data: st.DataObject) -> None:
    document = sample.artifact.document()
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(list(places(document))))
        holder[key] = data.draw(JSON)
    try:
        read(document)
    except BadArtifact:
        return
    require_verdict(document)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every member of every object and list within."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, (dict, list)):
            yield from places(value)
