"""How many connections: more while more brings more."""

from __future__ import annotations

from modelmount.pull import governor
from modelmount.pull.governor import Governor

MB = 1e6


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_slow_connections_become_more_while_the_total_grows_with_them() -> None:
    made = Governor(1, 16, Clock())
    wanted = []
    for busy in (1, 4, 8, 16):
        wanted.append(made.observe(50 * MB * busy, busy))
        made.observe(50 * MB * busy, wanted[-1])  # while it settles nothing is concluded
    assert wanted == [4, 8, 16, 16]
    assert made.may_split


def test_a_fast_connection_stays_alone() -> None:
    made = Governor(1, 16, Clock())
    assert made.observe(governor.FAST_BYTES_PER_SECOND, 1) == 1
    assert not made.may_split


def test_between_slow_and_fast_it_matters_what_the_threads_do() -> None:
    each = (governor.SLOW_BYTES_PER_SECOND + governor.FAST_BYTES_PER_SECOND) / 2
    busy, waiting, capped = (Governor(2, 16, Clock(), 8) for _ in range(3))
    assert busy.observe(2 * each, 2, 0.4) == 2
    assert not busy.may_split
    assert waiting.observe(2 * each, 2, 0.1) == 8
    assert capped.observe(2 * 50 * MB, 2, 0.4) == 8


def test_what_this_node_is_slow_at_is_not_the_connections_doing() -> None:
    made = Governor(1, 16, Clock())
    assert made.observe(50 * MB, 1, 0.9) == 1
    assert not made.may_split
    assert made.observe(50 * MB, 1, 0.1) == 4


def test_connections_whose_threads_use_up_the_processors_together_do_not_become_more() -> None:
    """Each of them looks slow and waits, for a processor."""
    small, large = (Governor(4, 16, Clock(), processors) for processors in (2, 8))
    assert small.observe(300 * MB, 4, 0.38) == 4
    assert not small.may_split
    assert large.observe(300 * MB, 4, 0.38) == 16


def test_connections_whose_threads_wait_for_each_other_become_more() -> None:
    waiting, working = (Governor(1, 16, Clock(), 2) for _ in range(2))
    for made in (waiting, working):
        assert made.observe(50 * MB, 1, 0.05, 0.05) == 4
        made.observe(150 * MB, 4, 0.1, 0.2)  # while it settles nothing is concluded
    assert waiting.observe(200 * MB, 4, 0.3, 0.2) == 8
    assert working.observe(200 * MB, 4, 0.3, 1.1) == 4


def test_a_lone_connection_whose_thread_decrypts_all_the_time_gets_one_beside_it() -> None:
    tls, plain, refused, single = (Governor(1, limit, Clock()) for limit in (16, 16, 16, 1))
    assert tls.observe(350 * MB, 1, 0.8) == 2
    assert tls.may_split
    assert tls.observe(400 * MB, 2, 0.8) == 2
    assert plain.observe(700 * MB, 1, 0.8) == 1
    assert not plain.may_split
    refused.complain(1)
    assert refused.observe(350 * MB, 1, 0.8) == 1
    assert single.observe(350 * MB, 1, 0.8) == 1
    assert not single.may_split


def test_what_is_known_of_connections_holds_while_this_node_is_slow() -> None:
    made = Governor(1, 16, Clock())
    made.observe(100 * MB, 2)
    made.observe(400 * MB, 1, 0.9)
    assert made.may_split
    assert made.each == 50 * MB


def test_a_stall_of_the_disk_holds_nothing() -> None:
    clock = Clock()
    made = Governor(1, 32, clock, 8)
    assert made.observe(80 * MB, 1) == 4
    made.observe(80 * MB, 4)
    assert made.observe(20 * MB, 4, 0.8) == 4  # the disk was busy: says nothing of four connections
    assert made.observe(300 * MB, 4, 0.2) == 8


def test_a_step_that_brings_nothing_is_the_last_for_a_while() -> None:
    clock = Clock()
    made = Governor(1, 32, clock, 8)
    assert made.observe(80 * MB, 1) == 4
    assert made.observe(70 * MB, 4) == 4  # still half of it over one
    assert made.observe(81 * MB, 4) == 4
    assert made.observe(200 * MB, 4) == 4
    clock.now += governor.HOLD_SECONDS
    assert made.observe(200 * MB, 4) == 8


def test_silence_says_nothing_about_connections() -> None:
    made = Governor(1, 16, Clock())
    for _ in range(20):
        assert made.observe(0.0, 1) == 1
    assert made.observe(80 * MB, 1) == 4


def test_threads_that_found_nothing_to_do_before_connections_were_known_to_be_slow_are_no_reason_to_wait() -> None:
    made = Governor(3, 16, Clock())
    assert made.observe(50 * MB, 1) == 4
    assert made.observe(50 * MB, 1) == 4  # settling
    assert made.observe(50 * MB, 1) == 4  # now they are


def test_nothing_is_learned_while_connections_are_idle() -> None:
    made = Governor(4, 16, Clock())
    assert made.observe(300 * MB, 1) == 4
    assert made.observe(0.0, 0) == 4


def test_complaints_halve_the_number_and_hold_it() -> None:
    clock = Clock()
    made = Governor(8, 16, clock)
    made.complain(8)
    made.complain(8)  # of the same moment
    assert made.wanted == 4
    assert made.observe(1 * MB, 4) == 4
    clock.now += governor.SPARED_SECONDS
    made.complain(4)
    assert made.wanted == 2
    for _ in range(20):
        clock.now += governor.SPARED_SECONDS / 2
        made.complain(2)
    assert made.wanted == 1
    assert made.observe(1 * MB, 1) == 1
    clock.now += governor.HOLD_SECONDS
    assert made.observe(1 * MB, 1) == 2


def test_a_complaint_is_about_the_connections_there_are() -> None:
    made = Governor(16, 16, Clock())
    made.complain(4)
    assert made.wanted == 2


def test_a_complaint_counts_while_the_number_is_held_for_bringing_nothing() -> None:
    made = Governor(2, 16, Clock())
    assert made.observe(80 * MB, 2) == 8
    made.observe(80 * MB, 8)
    assert made.observe(80 * MB, 8) == 8
    made.complain(8)
    assert made.wanted == 4


def test_the_limit_is_never_passed() -> None:
    made = Governor(3, 4, Clock())
    assert made.observe(1 * MB, 3) == 4
    assert Governor(9, 4).wanted == 4
