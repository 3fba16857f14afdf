import random
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.transport.retry import LONGEST_WAIT_SECONDS, Policy, read_retry_after

NOW = 1_800_000_000.0


def test_waits_double_up_to_a_limit() -> None:
    policy = Policy(first_seconds=1, longest_seconds=10, jitter=lambda: 1.0)
    assert [policy.delay(failures) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]


@given(failures=st.integers(0, 10**6), jitter=st.floats(0, 1))
def test_jitter_takes_at_most_half_of_a_wait_off(failures: int, jitter: float) -> None:
    longest = Policy(jitter=lambda: 1.0).delay(failures)
    assert longest / 2 <= Policy(jitter=lambda: jitter).delay(failures) <= longest <= 30


def test_nodes_that_failed_together_come_back_apart() -> None:
    assert len({Policy().delay(5) for _ in range(20)}) > 10
    assert isinstance(Policy().jitter(), float)
    assert Policy().jitter is random.random


@pytest.mark.parametrize("asked", [7.0, 60.0, 599.0])
def test_a_wait_that_the_other_side_asks_for_is_kept(asked: float) -> None:
    assert asked <= Policy().delay(1, asked) <= asked + 0.5


@pytest.mark.parametrize(("asked", "least"), [(999_999.0, LONGEST_WAIT_SECONDS), (-5.0, 0.0), (0.0, 0.0)])
def test_h13_an_absurd_wait_is_not(asked: float, least: float) -> None:
    assert least <= Policy().delay(1, asked) <= least + 0.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 5 ", 5.0),
        ("0", 0.0),
        ("999999", LONGEST_WAIT_SECONDS),
        ("9" * 400, None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Fri, 31 Dec 2099 23:59:59 GMT", LONGEST_WAIT_SECONDS),
        ("Fri, 99 Dec 2099 23:59:59 GMT", None),
    ],
)
def test_h13_retry_after_is_read_in_both_forms_and_capped(header: str | None, seconds: float | None) -> None:
    assert read_retry_after(header, NOW) == seconds
