"""How long a call may wait, and what ends its wait."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest

from modelmount.config import Publish
from modelmount.errors import Cancelled, Pending
from modelmount.volumes.attempts import Attempt, Attempts
from tests.unit.volumes.conftest import Call


def attempt(left: float | None, **settings: float) -> Attempt:
    deadline = None if left is None else time.monotonic() + left
    return Attempt("/target", Call(deadline), msgspec.structs.replace(Publish(), **settings))


@pytest.mark.parametrize(
    ("left", "wait"), [(None, 105), (120, 105), (1000, 105), (100, 92), (10, 9.2), (0.05, 0.1), (0, 0.1), (-5, 0.1)]
)
def test_a_call_waits_a_share_of_its_time(left: float | None, wait: float) -> None:
    assert_waits(wait, left)


def assert_waits(wait: float, left: float | None, **settings: float) -> None:
    """It waits so long, less what passed meanwhile on however slow a machine; never less than 100 ms."""
    before = time.monotonic()
    found = attempt(left, **settings).patience_seconds
    late = time.monotonic() - before
    assert max(0.1, wait - late - 1e-6) <= found <= wait + 1e-6


def test_an_admin_sets_share_and_limit() -> None:
    assert_waits(50, 100, wait_fraction=0.5)
    assert attempt(None, wait_seconds=3).patience_seconds == 3


def test_an_overtaken_attempt_is_pending_and_a_left_one_cancelled() -> None:
    overtaken, left = attempt(None), attempt(None)
    overtaken.check()
    assert not overtaken.is_over()
    overtaken.overtake()
    assert overtaken.is_over()
    with pytest.raises(Pending, match="was unpublished"):
        overtaken.check()
    left._call.cancelled.set()
    assert left.is_over()
    with pytest.raises(Cancelled):
        left.check()


def test_only_attempts_on_that_target_are_overtaken_and_none_is_remembered() -> None:
    attempts = Attempts()
    with (
        attempts.begin("/a", Call(), Publish()) as one,
        attempts.begin("/a", Call(), Publish()) as two,
        attempts.begin("/b", Call(), Publish()) as other,
    ):
        attempts.overtake("/a")
        attempts.overtake("/c")
        assert (one.is_over(), two.is_over(), other.is_over()) == (True, True, False)
        with attempts.begin("/a", Call(), Publish()) as later:
            assert not later.is_over()
    assert attempts._by_path == {}


def test_attempts_come_and_go_on_many_threads() -> None:
    attempts = Attempts()
    barrier = threading.Barrier(8)

    def come_and_go() -> None:
        barrier.wait()
        for n in range(200):
            with attempts.begin(f"/{n % 3}", Call(), Publish()):
                attempts.overtake(f"/{n % 3}")

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert attempts._by_path == {}
