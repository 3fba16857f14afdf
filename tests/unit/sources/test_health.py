"""Mirrors that fail are left alone, longer each time, and tried again by one request."""

from __future__ import annotations

import threading

import pytest

from modelmount.sources.health import FIRST_SECONDS, LAST_SECONDS, Health, Turn

NAME = "mirror.example.com"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def turn(health: Health) -> Turn:
    got = health.ask(NAME)
    assert got is not None
    return got


def test_one_that_is_well_is_asked_by_everybody(health: Health) -> None:
    turns = [turn(health) for _ in range(40)]
    turns[0].served()
    assert health.ask(NAME) is not None


def test_one_that_failed_is_left_alone_and_others_are_not(health: Health, clock: Clock) -> None:
    turn(health).failed("refused the connection")
    assert health.ask(NAME) is None
    assert health.ask("other.example.com") is not None
    clock.now += FIRST_SECONDS - 0.1
    assert health.ask(NAME) is None


def test_failures_at_the_same_time_count_once(health: Health, clock: Clock) -> None:
    for each in [turn(health) for _ in range(40)]:
        each.failed("reset")
    clock.now += FIRST_SECONDS
    assert health.ask(NAME) is not None


def test_after_its_time_one_request_finds_out(health: Health, clock: Clock) -> None:
    turn(health).failed("reset")
    clock.now += FIRST_SECONDS
    trial = turn(health)
    assert health.ask(NAME) is None
    trial.heard()
    assert health.ask(NAME) is not None


def test_a_trial_that_nobody_finished_is_made_again(health: Health, clock: Clock) -> None:
    turn(health).failed("reset")
    clock.now += FIRST_SECONDS
    trial = turn(health)
    trial.close()
    trial.close()
    again = turn(health)
    trial.close()
    assert health.ask(NAME) is None
    again.close()
    assert health.ask(NAME) is not None


def test_each_failure_in_a_row_doubles_the_time_up_to_the_longest(health: Health, clock: Clock) -> None:
    waits = []
    for _ in range(9):
        turn(health).failed("reset")
        began = clock.now
        while (got := health.ask(NAME)) is None:
            clock.now += FIRST_SECONDS
        got.heard()  # an answer alone makes up for nothing
        waits.append(clock.now - began)
    assert waits[:4] == [FIRST_SECONDS * 2**n for n in range(4)]
    assert waits[-1] == LAST_SECONDS


def test_a_kept_promise_makes_up_for_all_failures(health: Health, clock: Clock) -> None:
    for _ in range(3):
        turn(health).failed("reset")
        clock.now += LAST_SECONDS
    turn(health).served()
    turn(health).failed("reset")
    clock.now += FIRST_SECONDS
    assert health.ask(NAME) is not None


def test_what_began_before_a_failure_neither_lifts_nor_lengthens_it(health: Health, clock: Clock) -> None:
    old, older = turn(health), turn(health)
    turn(health).failed("reset")
    old.served()
    assert health.ask(NAME) is None
    older.failed("reset")
    clock.now += FIRST_SECONDS
    assert health.ask(NAME) is not None


def test_a_wait_that_it_asks_for_is_kept(health: Health, clock: Clock) -> None:
    turn(health).failed("too many requests", 120.0)
    clock.now += 119
    assert health.ask(NAME) is None
    clock.now += 1
    assert health.ask(NAME) is not None


def test_many_threads_get_one_trial(health: Health, clock: Clock) -> None:
    turn(health).failed("reset")
    clock.now += FIRST_SECONDS
    got: list[Turn | None] = []
    barrier = threading.Barrier(16)

    def ask() -> None:
        barrier.wait()
        got.append(health.ask(NAME))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each is not None for each in got) == 1


def test_one_host_has_so_many_places_however_its_mirrors_are_called(clock: Clock) -> None:
    shared = threading.Semaphore(2)
    health = Health(clock, {NAME: shared, f"{NAME}_v2_hub": shared})
    first, second = turn(health), health.ask(f"{NAME}_v2_hub")
    assert second is not None
    assert health.ask(NAME) is None
    assert health.ask("other.example.com") is not None
    first.served()
    assert health.ask(NAME) is None  # served isn't over
    first.close()
    first.close()
    turn(health)
    assert health.ask(NAME) is None


def test_without_a_place_nobody_finds_out_whether_a_mirror_is_back(clock: Clock) -> None:
    shared = threading.Semaphore(2)
    health = Health(clock, {NAME: shared, "beside": shared})
    failed, beside = turn(health), health.ask("beside")
    assert beside is not None
    failed.failed("reset")
    clock.now += FIRST_SECONDS
    assert health.ask(NAME) is None
    failed.close()
    turn(health).served()  # asking in vain wasn't the one request that finds out


class Heard:
    """Notes each word, times apart."""

    def __init__(self) -> None:
        self.words: list[tuple[str, str]] = []
        self.since: list[float] = []
        self.lengths: list[float] = []

    def aside(self, mirror: str, since: float, until: float, reason: str) -> None:
        self.words.append((mirror, reason))
        self.since.append(since)
        self.lengths.append(until - since)

    def back(self, mirror: str) -> None:
        self.words.append((mirror, "back"))


def test_who_looks_from_outside_is_told_who_is_left_alone_since_when_and_why(clock: Clock) -> None:
    notes = Heard()
    health = Health(clock, notes=notes)
    turn(health).served()
    first, late = turn(health), turn(health)
    first.failed("reset")
    late.failed("reset")  # the same trouble
    clock.now += FIRST_SECONDS
    turn(health).failed("refused")
    clock.now += 2 * FIRST_SECONDS
    turn(health).served()
    turn(health).served()
    assert notes.words == [(NAME, "reset"), (NAME, "refused"), (NAME, "back")]
    assert notes.since[0] == notes.since[1]
    assert notes.lengths[0] == pytest.approx(FIRST_SECONDS)
    assert notes.lengths[1] >= 2 * FIRST_SECONDS - 1
