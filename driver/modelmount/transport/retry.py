"""When to try again. Pure: whoever waits, waits elsewhere, where a cancel can wake it."""

from __future__ import annotations

import email.utils
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LONGEST_WAIT_SECONDS: Final = 600.0
"""Most that another side's Retry-After is believed."""

_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Policy:
    """Exponential back-off with jitter. `jitter` yields numbers from 0 to 1."""

    first_seconds: float = 0.5
    factor: float = 2.0
    longest_seconds: float = 30.0
    jitter: Callable[[], float] = random.random

    def delay(self, failures: int, retry_after: float | None = None) -> float:
        """Seconds to wait after the `failures`-th failure in a row (from 1).

        Between half of the step and all of it, so that nodes that failed together don't come back together. A wait that
        the other side asked for is kept, up to LONGEST_WAIT_SECONDS, with the jitter on top.
        """
        exponent = min(max(failures, 1) - 1, 32)
        step = min(self.first_seconds * self.factor**exponent, self.longest_seconds)
        wait = step * (0.5 + 0.5 * self.jitter())
        if retry_after is None:
            return wait
        asked = min(max(retry_after, 0.0), LONGEST_WAIT_SECONDS)
        return max(wait, asked + self.first_seconds * self.jitter())


def read_retry_after(value: str | None, now: float) -> float | None:
    """The Retry-After header (RFC 9110 §10.2.3) in seconds from `now` (of `time.time`), at most LONGEST_WAIT_SECONDS;
    None where there is none or it makes no sense.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), LONGEST_WAIT_SECONDS)
    try:
        when = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return min(max(when - now, 0.0), LONGEST_WAIT_SECONDS)
