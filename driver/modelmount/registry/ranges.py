"""Reading the answer to a range request (RFC 9110 §14.4)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CONTENT_RANGE = re.compile(r"bytes[ \t]+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` to `last` of a whole with `total` bytes, None where the server doesn't know."""

    first: int
    last: int
    total: int | None

    def fits(self, offset: int, length: int | None) -> bool:
        """Whether this is what a request from `offset` to the end may get, with a body of `length` bytes (None: not
        declared). It may end early: the rest is asked for next time.
        """
        if self.first != offset or self.last < self.first:
            return False
        if self.total is not None and self.last >= self.total:
            return False
        return length is None or length == self.last - self.first + 1


def read(content_range: str | None) -> Span | None:
    """The Content-Range header's value; None where it is missing or not one range of bytes."""
    match = _CONTENT_RANGE.fullmatch((content_range or "").strip())
    if match is None:
        return None
    return Span(int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3]))
