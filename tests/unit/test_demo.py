"""What the demo calls fetched twice: the registry's log counts bytes that nobody got, where a connection was cut."""

from __future__ import annotations

import pytest

from scripts import demo

LARGE = demo.DIVIDED_BYTES


@pytest.mark.parametrize(
    ("served", "size", "twice"),
    [
        pytest.param(700, 700, False, id="a small blob once"),
        pytest.param(701, 700, True, id="a small blob and a byte more"),
        pytest.param(LARGE, LARGE, False, id="a large blob once"),
        pytest.param(LARGE + (6 << 20), LARGE, False, id="a large blob with a connection that was cut"),
        pytest.param(2 * LARGE, LARGE, True, id="a large blob twice"),
        pytest.param(LARGE + LARGE * 2 // 3, LARGE, True, id="most of a large blob again"),
    ],
)
def test_a_blob_is_fetched_twice_when_more_was_served_than_one_download_takes(
    served: int, size: int, twice: bool
) -> None:
    assert demo.is_twice(served, size) is twice
