"""Byte ranges behave like the sets of bytes they stand for, and stay sorted and apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelmount.content import ranges
from modelmount.content.ranges import Range

SIZE = 40


def to_set(found: list[Range]) -> set[int]:
    return {byte for first, last in found for byte in range(first, last)}


def from_set(members: set[int]) -> list[Range]:
    """Sorted and apart, as the module wants them."""
    firsts = sorted(byte for byte in members if byte - 1 not in members)
    lasts = sorted(byte + 1 for byte in members if byte + 1 not in members)
    return list(zip(firsts, lasts, strict=True))


members = st.sets(st.integers(0, SIZE - 1))
spans = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(lambda span: (span[0], span[0] + span[1]))


@given(members, spans)
def test_parts_within_a_span(known: set[int], span: Range) -> None:
    assert ranges.within(from_set(known), *span) == from_set(known & set(range(*span)))


@given(members, spans)
def test_what_is_left_without_a_span(known: set[int], span: Range) -> None:
    before = from_set(known)
    given_list = list(before)
    assert to_set(ranges.without(given_list, *span)) == known - set(range(*span))
    assert given_list == before


@given(members, spans)
def test_what_is_left_is_sorted_and_apart(known: set[int], span: Range) -> None:
    found = ranges.without(from_set(known), *span)
    assert all(first < last for first, last in found)
    assert all(found[n][1] <= found[n + 1][0] for n in range(len(found) - 1))


@given(members)
def test_what_lies_between(known: set[int]) -> None:
    assert ranges.between(from_set(known), SIZE) == from_set(set(range(SIZE)) - known)
