"""The node's connections among its jobs."""

from __future__ import annotations

import threading

from modelmount.pull.connections import Connections


def never() -> bool:
    return False


def test_no_more_than_the_node_allows_and_no_more_than_a_registry() -> None:
    made = Connections(3, lambda registry: 2)
    assert [made.acquire("a", wait=False, cancelled=never) for _ in range(3)] == [True, True, False]
    assert [made.acquire("b", wait=False, cancelled=never) for _ in range(2)] == [True, False]
    made.release("a")
    assert made.acquire("b", wait=False, cancelled=never)
    assert made.most("a") == 2


def test_a_job_without_one_comes_before_those_that_want_more() -> None:
    made = Connections(1, lambda registry: 1)
    made.acquire("a", wait=False, cancelled=never)
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(made.acquire("a", wait=True, cancelled=never)))
    thread.start()
    while not made.is_wanted:
        thread.join(0.01)
    assert not made.acquire("a", wait=False, cancelled=never)
    made.release("a")
    thread.join(10)
    assert got == [True]
    assert not made.is_wanted


def test_a_cancelled_wait_ends() -> None:
    made = Connections(1, lambda registry: 1)
    made.acquire("a", wait=False, cancelled=never)
    assert not made.acquire("a", wait=True, cancelled=lambda: True)
