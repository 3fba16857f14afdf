"""How a blob's missing bytes are handed out, divided, and given back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelmount.pull.segments import ALIGNMENT_BYTES, Segment, Segments

MB = ALIGNMENT_BYTES
MUCH = 1 << 60


def taken(segments: Segments, length: int | None = None, below: int = MUCH) -> Segment:
    segment = segments.take(length, below)
    assert segment is not None
    return segment


def spans(segments: Segments, length: int | None = None) -> list[tuple[int, int]]:
    """Everything that can be taken, taken."""
    found = []
    while segment := segments.take(length, MUCH):
        found.append((segment.position // MB, segment.end // MB))
    return found


def test_missing_ranges_are_handed_out_whole_or_cut_from_the_front() -> None:
    missing = [(10 * MB, 35 * MB), (50 * MB, 60 * MB)]
    assert spans(Segments(missing)) == [(10, 35), (50, 60)]
    assert spans(Segments(missing), 10 * MB) == [(10, 20), (20, 30), (30, 35), (50, 60)]


def test_cuts_lie_where_the_pieces_of_the_journal_meet() -> None:
    segments = Segments([(5, 10 * MB)])
    assert taken(segments, 2 * MB).end == 3 * MB
    assert taken(segments, 2 * MB).end == 5 * MB


def test_what_is_not_finished_is_handed_out_again_from_where_it_stopped() -> None:
    segments = Segments([(0, 30 * MB)])
    first = taken(segments, 10 * MB)
    taken(segments, 10 * MB)
    first.position = 4 * MB
    segments.finish(first)
    assert spans(segments, 10 * MB) == [(4, 10), (20, 30)]


def test_segments_too_far_ahead_are_not_handed_out_yet() -> None:
    segments = Segments([(0, 30 * MB)])
    assert segments.take(10 * MB, 0) is None
    taken(segments, 10 * MB, 1)
    assert segments.take(10 * MB, 10 * MB) is None
    assert taken(segments, 10 * MB, 11 * MB).start == 10 * MB


def test_a_segment_with_much_left_is_shared_well_ahead_of_its_owner() -> None:
    segments = Segments([(0, 100 * MB)])
    owner = taken(segments)
    owner.position = 10 * MB
    assert segments.share(8 * MB, MUCH)
    assert owner.end == 18 * MB
    assert spans(segments) == [(18, 100)]


def test_a_segment_with_little_left_is_its_owner_s() -> None:
    segments = Segments([(0, 100 * MB)])
    owner = taken(segments)
    owner.position = 90 * MB
    assert not segments.share(8 * MB, MUCH)
    assert owner.end == 100 * MB


def test_the_segment_with_most_left_is_the_one_that_is_shared() -> None:
    segments = Segments([(0, 100 * MB)])
    first, second = taken(segments, 20 * MB), taken(segments)
    assert segments.share(8 * MB, MUCH)
    assert (first.end, second.end) == (20 * MB, 28 * MB)


def test_a_segment_is_shared_no_farther_than_what_has_its_place() -> None:
    segments = Segments([(0, 100 * MB)])
    owner = taken(segments)
    assert not segments.share(8 * MB, MB - 1)
    assert segments.share(8 * MB, 2 * MB + 512)
    assert owner.end == 2 * MB + 512
    behind = taken(segments, 8 * MB)
    assert (behind.start, behind.end) == (2 * MB + 512, 11 * MB)


def test_what_is_free_behind_the_front_can_be_begun_before_it() -> None:
    """As where one connection's share of an archive ends in the middle of a member."""
    segments = Segments([(0, 100 * MB)])
    owner = taken(segments, 8 * MB)
    owner.position = MB
    front = 7 * MB + 512
    assert segments.take(8 * MB, front + 1) is None
    assert segments.share(8 * MB, front)
    assert owner.end == front
    behind = segments.take(8 * MB, front + 1)
    assert behind is not None
    assert (behind.start, behind.end) == (front, 16 * MB)
    assert spans(segments) == [(16, 100)]


def test_what_is_free_and_has_its_place_is_no_reason_to_share() -> None:
    segments = Segments([(0, 100 * MB)])
    owner = taken(segments, 8 * MB)
    assert not segments.share(5 * MB, MUCH)
    assert owner.end == 8 * MB


def test_a_source_without_ranges_gets_one_range_and_is_told_what_is_written_again() -> None:
    segments = Segments([(0, 30 * MB)])
    first, second = taken(segments, 10 * MB), taken(segments, 10 * MB)
    first.position, second.position = 4 * MB, second.end
    segments.finish(first)
    segments.finish(second)
    assert segments.merge() == 10 * MB
    assert spans(segments) == [(4, 30)]
    assert segments.merge() == 0


def test_the_only_owner_may_go_on_to_the_end() -> None:
    segments = Segments([(0, 30 * MB)])
    first, second = taken(segments, 10 * MB), taken(segments, 10 * MB)
    assert segments.is_first(first)
    assert not segments.is_first(second)
    assert segments.extend(first, 30 * MB) is None
    second.position = 14 * MB
    segments.finish(second)
    assert segments.extend(first, 30 * MB) == 4 * MB
    assert (first.position, first.end) == (0, 30 * MB)
    assert spans(segments) == []
    assert segments.missing_bytes == 30 * MB


@given(
    missing=st.lists(st.tuples(st.integers(0, 40 * MB), st.integers(1, 40 * MB)), max_size=6),
    length=st.integers(MB, 50 * MB),
    progress=st.lists(st.integers(0, 50 * MB), max_size=20),
    order=st.randoms(use_true_random=False),
)
def test_whatever_owners_do_every_missing_byte_is_handed_out_exactly_once(
    missing: list[tuple[int, int]], length: int, progress: list[int], order: object
) -> None:
    ranges, end = [], 0
    for gap, count in missing:
        ranges.append((end + gap, end + gap + count))
        end += gap + count + 1
    segments = Segments(ranges)
    written: list[tuple[int, int]] = []
    owned: list[Segment] = []
    steps = list(progress)
    while not segments.is_complete:
        segment = segments.take(length if len(owned) % 2 else None, MUCH)
        if segment is not None:
            owned.append(segment)
            segments.share(length, MUCH)
            continue
        order.shuffle(owned)  # type: ignore[attr-defined]
        done = owned.pop()
        step = min(steps.pop(), done.missing) if steps else done.missing
        written.append((done.position, done.position + step))
        done.position += step
        segments.finish(done)
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(part for part in written if part[0] < part[1]):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    assert merged == ranges


@given(
    size=st.integers(1, 60 * MB),
    length=st.integers(MB, 20 * MB),
    steps=st.lists(st.tuples(st.sampled_from(["take", "share", "write", "finish"]), st.integers(0, 7)), max_size=40),
)
def test_when_ranges_turn_out_to_be_ignored_one_stream_brings_the_rest_and_the_count_stays_right(
    size: int, length: int, steps: list[tuple[str, int]]
) -> None:
    segments = Segments([(0, size)])
    owned: list[Segment] = []
    counted = 0
    for step, number in steps:
        each = owned[number % len(owned)] if owned else None
        if step == "take" and (segment := segments.take(length if number % 2 else None, MUCH)) is not None:
            owned.append(segment)
        elif step == "share":
            segments.share(length, MUCH)
        elif each is not None and step == "write":
            written = min(each.missing, (number + 1) * MB)
            each.position += written
            counted += written
        elif each is not None:
            owned.remove(each)
            segments.finish(each)
    for each in [each for each in owned if not segments.is_first(each)]:
        owned.remove(each)
        segments.finish(each)
    if owned:
        again = segments.extend(owned[0], size)
        assert again is not None
        counted += owned[0].missing - again
        owned[0].position = owned[0].end
        segments.finish(owned[0])
    for _ in range(2):  # what lay before that stream, in one more
        again = segments.merge()
        rest = segments.take(None, MUCH)
        if rest is not None:
            counted += rest.missing - again
            rest.position = rest.end
            segments.finish(rest)
    assert segments.is_complete
    assert segments.missing_bytes == 0
    assert counted == size
