"""A limit on bytes a second: counted on a clock of the test's own."""

from __future__ import annotations

import threading

import pytest

from modelmount.sources.throttled import BURST_SECONDS, PIECE_BYTES, Bandwidth, ThrottledSource
from tests.conformance.blob_source import DATA, descriptor, received
from tests.fakes.source import MemorySource


class Clock:
    """Time passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("rate", [10_000, 1_000_000, 10**12])
def test_a_blob_takes_its_time(clock: Clock, rate: int) -> None:
    source = ThrottledSource(MemorySource(DATA), Bandwidth(rate, clock, clock.sleep))
    began = clock.now
    assert received(source.open(descriptor(DATA), 0)) == DATA
    assert clock.now - began == pytest.approx(len(DATA) / rate, abs=1e-6)


def test_the_limit_is_one_for_all(clock: Clock) -> None:
    bandwidth = Bandwidth(1_000_000, clock, clock.sleep)
    waits = []
    for _ in range(4):
        before = clock.now
        bandwidth.spend(100_000)
        waits.append(clock.now - before)
        clock.now = before  # they come at the same moment
    assert waits == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_an_idle_time_is_made_up_for_by_a_moment_only(clock: Clock) -> None:
    bandwidth = Bandwidth(1_000_000, clock, clock.sleep)
    clock.now += 3600
    began = clock.now
    bandwidth.spend(1_000_000)
    assert clock.now - began == pytest.approx(1.0 - BURST_SECONDS)


def test_what_is_awaited_waits_for_nothing_that_is_not(clock: Clock) -> None:
    bandwidth = Bandwidth(1_000_000, clock, clock.sleep)
    began = clock.now
    bandwidth.spend(500_000, awaited=False)
    clock.now = began  # they come at the same moment
    bandwidth.spend(100_000)
    assert clock.now - began == pytest.approx(0.1)


def test_what_nobody_waits_for_has_what_the_others_leave(clock: Clock) -> None:
    """Also where those come after it, for as long as they keep coming."""
    to_come = [100_000] * 5

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if to_come:
            bandwidth.spend(to_come.pop(), stopped=lambda: True)

    bandwidth = Bandwidth(1_000_000, clock, sleep)
    began = clock.now
    bandwidth.spend(100_000, awaited=False)
    assert not to_come
    assert clock.now - began == pytest.approx(0.6)


def test_a_wait_ends_when_nobody_wants_the_bytes_any_more() -> None:
    opened = ThrottledSource(MemorySource(DATA), Bandwidth(1)).open(descriptor(DATA), 0)
    reader = threading.Thread(target=opened.readinto, args=(memoryview(bytearray(10)),))
    with opened:
        reader.start()
        opened.interrupt()
        reader.join(5)
        assert not reader.is_alive()


@pytest.mark.parametrize(("rate", "piece"), [(1, PIECE_BYTES[0]), (1_000_000, 20_000), (10**12, PIECE_BYTES[1])])
def test_turns_are_short(rate: int, piece: int) -> None:
    assert Bandwidth(rate).piece_bytes == piece
