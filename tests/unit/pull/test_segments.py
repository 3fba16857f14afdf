"""How a blob's missing bytes are cut, handed out, and how far it is whole from its beginning."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelmount.pull.segments import Segment, Segments

MUCH = 1 << 60


def spans(segments: Segments) -> list[tuple[int, int]]:
    """Everything that can be taken, taken."""
    found = []
    while segment := segments.take(MUCH):
        found.append((segment.position, segment.end))
    return found


def test_missing_ranges_are_cut_and_handed_out_from_the_front() -> None:
    assert spans(Segments(100, [(10, 35), (50, 60)], 10)) == [(10, 20), (20, 30), (30, 35), (50, 60)]


def test_the_frontier_is_where_the_first_gap_begins() -> None:
    assert Segments(100, [(10, 35), (50, 60)], 10).frontier == 10
    assert Segments(100, [], 10).frontier == 100


def test_a_segment_ahead_of_the_first_gap_doesn_t_move_the_frontier_until_the_gap_closes() -> None:
    segments = Segments(30, [(0, 30)], 10)
    first, second = taken(segments), taken(segments)
    assert segments.advance(second, 15) == 0
    assert segments.finish(second) == 0
    assert segments.advance(first, 7) == 7
    assert segments.finish(first) == 20
    assert not segments.is_complete


def test_what_is_given_back_is_the_next_one_taken_from_where_it_stopped() -> None:
    segments = Segments(30, [(0, 30)], 10)
    first = taken(segments)
    taken(segments)
    segments.advance(first, 4)
    segments.give_back(first)
    again = taken(segments)
    assert (again.position, again.end) == (4, 10)


def test_segments_too_far_ahead_are_not_handed_out_yet() -> None:
    segments = Segments(30, [(0, 30)], 10)
    assert taken(segments, 10).start == 0
    assert segments.take(10) is None
    assert taken(segments, 11).start == 10


def test_a_source_without_ranges_gets_one_segment_behind_the_frontier() -> None:
    segments = Segments(30, [(0, 30)], 10)
    first, second = taken(segments), taken(segments)
    segments.advance(first, 4)
    segments.finish(second)
    segments.give_back(first)
    segments.merge()
    assert spans(segments) == [(4, 30)]


@given(
    missing=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=6),
    length=st.integers(1, 50),
    order=st.randoms(use_true_random=False),
)
def test_in_whatever_order_they_finish_the_blob_is_whole_exactly_at_the_end(
    missing: list[tuple[int, int]], length: int, order: object
) -> None:
    ranges, end = [], 0
    for gap, count in missing:
        ranges.append((end + gap, end + gap + count))
        end += gap + count + 1
    segments = Segments(end + 1, ranges, length)
    owned = []
    while segment := segments.take(MUCH):
        owned.append(segment)
    assert sum(segment.missing for segment in owned) == sum(last - first for first, last in ranges)
    order.shuffle(owned)  # type: ignore[attr-defined]
    for number, segment in enumerate(owned):
        assert not segments.is_complete
        frontier = segments.finish(segment)
        still = [other.start for other in owned[number + 1 :]]
        assert frontier == min(still, default=end + 1)
    assert segments.is_complete


def taken(segments: Segments, below: int = MUCH) -> Segment:
    segment = segments.take(below)
    assert segment is not None
    return segment
