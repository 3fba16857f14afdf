"""What the governor is told of the time between two looks."""

from __future__ import annotations

import pytest

from modelmount.pull import rates
from modelmount.pull.progress import Expected, Progress
from modelmount.pull.rates import Came, Rates

KEY = ("sha256:" + "0" * 64, "raw")


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_look_is_about_what_came_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(rates, "time", clock)
    progress = Progress()
    progress.expect([Expected(KEY, "weights.bin", 10_000)])
    looks = Rates(progress)
    clock.now += 1
    progress.file(KEY).fetched(100, 0.5, 0.25)
    assert looks.came(2) is None  # connections were still being made
    clock.now += 2
    progress.file(KEY).fetched(1000, 3.0, 1.0)
    progress.worked(1.0)
    assert looks.came(2) == Came(rate=500.0, ours=1.0, processors=1.0)
