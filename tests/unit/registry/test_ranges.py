import pytest

from modelmount.registry.ranges import Span, read


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes 0-9/10", Span(0, 9, 10)),
        ("Bytes  5-9/*", Span(5, 9, None)),
        (" bytes 5-9/100 ", Span(5, 9, 100)),
        (None, None),
        ("", None),
        ("bytes */10", None),
        ("bytes 0-9", None),
        ("bytes=0-9/10", None),
        ("bytes -5-9/10", None),
        ("bytes 0-9/10, bytes 20-29/30", None),
        ("bytes ٠-9/10", None),
        (f"bytes 0-{'9' * 30}/{'9' * 31}", None),
    ],
)
def test_a_content_range_is_one_range_of_bytes_or_none(header: str | None, span: Span | None) -> None:
    assert read(header) == span


@pytest.mark.parametrize(
    ("span", "offset", "length", "fits"),
    [
        (Span(5, 9, 10), 5, 5, True),
        (Span(5, 9, 10), 5, None, True),
        (Span(5, 9, None), 5, 5, True),
        (Span(5, 7, 10), 5, 3, True),
        (Span(4, 9, 10), 5, 6, False),
        (Span(6, 9, 10), 5, 4, False),
        (Span(5, 9, 10), 5, 4, False),
        (Span(5, 9, 9), 5, 5, False),
        (Span(5, 4, 10), 5, 0, False),
    ],
)
def test_a_range_fits_when_it_begins_where_it_was_asked_to(
    span: Span, offset: int, length: int | None, *, fits: bool
) -> None:
    assert span.fits(offset, length) is fits
