"""Byte ranges `(first, last)`, last exclusive, in lists that are sorted and whose members are apart. Pure.

Lists are never changed in place, so one thread may read what another replaces. Costs grow with the logarithm of the
list and with what is touched.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

Range = tuple[int, int]


def within(ranges: Sequence[Range], first: int, last: int) -> list[Range]:
    """The parts of `ranges` that lie in `first` to `last`, of which there is at least one byte."""
    start, stop = _touched(ranges, first, last)
    return [(max(a, first), min(b, last)) for a, b in ranges[start:stop]]


def without(ranges: Sequence[Range], first: int, last: int) -> list[Range]:
    """`ranges` without the bytes from `first` to `last`, of which there is at least one."""
    start, stop = _touched(ranges, first, last)
    if start == stop:
        return list(ranges)
    ends = ((ranges[start][0], first), (last, ranges[stop - 1][1]))
    return [*ranges[:start], *((a, b) for a, b in ends if a < b), *ranges[stop:]]


def between(ranges: Sequence[Range], size: int) -> list[Range]:
    """What of the bytes below `size` isn't in `ranges`."""
    firsts, lasts = [first for first, _ in ranges], [last for _, last in ranges]
    return [(a, b) for a, b in zip([0, *lasts], [*firsts, size], strict=True) if a < b]


def _touched(ranges: Sequence[Range], first: int, last: int) -> tuple[int, int]:
    # Without `key`, which would call back into Python at each step: this runs for every buffer of a download.
    start = bisect_left(ranges, (first,))
    if start and ranges[start - 1][1] > first:
        start -= 1
    return start, bisect_left(ranges, (last,), lo=start)
