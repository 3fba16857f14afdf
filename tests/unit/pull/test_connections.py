"""The node's connections among its jobs: who gets the next one, and who gives one back."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest

from modelmount.content.store import Store
from modelmount.pull.connections import TURN_SECONDS, WISH_SECONDS, Connections, Share
from modelmount.pull.neighbours import Neighbours

SECONDS = 30.0


def never() -> bool:
    return False


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001  # no two moments are the same
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take(share: Share, count: int = 1) -> int:
    """How many of `count` it gets without waiting."""
    return sum(share.acquire(wait=False, cancelled=never) for _ in range(count))


class Waiting:
    """A job's thread that waits for its first connection."""

    def __init__(self, share: Share) -> None:
        self.share, self.got = share, threading.Event()
        self.ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not share.waiting and not self.got.is_set():
            self._thread.join(0.001)

    def _run(self) -> None:
        if self.share.acquire(wait=True, cancelled=lambda: self.ended):
            self.got.set()

    def end(self) -> None:
        self.ended = True
        self._thread.join(SECONDS)


def test_no_more_than_the_node_allows_and_no_more_than_a_registry() -> None:
    made = Connections(3, lambda registry: 2)
    one, two = made.share("a"), made.share("b")
    assert take(one, 3) == 2
    assert take(two, 2) == 1
    one.release()
    assert take(two) == 1
    assert one.most == 2


def test_a_job_without_one_comes_before_those_that_want_more() -> None:
    made = Connections(1, lambda registry: 1)
    one, two = made.share("a"), made.share("a")
    take(one)
    waiter = Waiting(two)
    assert take(one) == 0
    one.release()
    assert waiter.got.wait(SECONDS)
    waiter.end()
    assert two.count == 1


def test_a_cancelled_wait_ends_and_leaves_nothing_behind() -> None:
    made = Connections(1, lambda registry: 1)
    one, two = made.share("a"), made.share("a")
    take(one)
    assert not two.acquire(wait=True, cancelled=lambda: True)
    assert not one.is_wanted
    one.release()
    assert take(one) == 1


def test_a_job_that_somebody_waits_for_comes_before_a_prefetch(clock: Clock) -> None:
    made = Connections(1, lambda registry: 1, clock)
    holder, prefetch, pod = made.share("a"), made.share("b", never), made.share("c")
    take(holder)
    first = Waiting(prefetch)
    second = Waiting(pod)
    holder.release()
    assert second.got.wait(SECONDS)
    assert not first.got.is_set()
    pod.release()
    assert first.got.wait(SECONDS)
    first.end()
    second.end()


def test_a_prefetch_gives_up_even_its_only_connection_for_a_pod(clock: Clock) -> None:
    made = Connections(2, lambda registry: 2, clock)
    prefetch, other, pod = made.share("a", never), made.share("b"), made.share("c")
    take(prefetch)
    take(other)
    waiter = Waiting(pod)
    assert prefetch.is_wanted
    assert not other.is_wanted
    assert [prefetch.yields() for _ in range(2)] == [True, False]  # once promised is enough
    prefetch.release()
    assert waiter.got.wait(SECONDS)
    waiter.end()


def test_a_pods_wish_for_more_comes_before_a_prefetch_too(clock: Clock) -> None:
    made = Connections(4, lambda registry: 4, clock)
    prefetch, pod = made.share("a", never), made.share("b")
    assert take(prefetch, 3) == 3
    assert take(pod, 2) == 1
    assert prefetch.yields()
    prefetch.release()
    assert take(prefetch) == 0
    assert take(pod) == 1
    assert not prefetch.is_wanted


def test_a_wish_is_forgotten_when_it_is_not_repeated(clock: Clock) -> None:
    made = Connections(2, lambda registry: 2, clock)
    one, two = made.share("a", never), made.share("b")
    take(one)
    assert take(two, 2) == 1
    assert one.is_wanted
    clock.now += WISH_SECONDS
    assert not one.is_wanted


def test_models_come_to_equal_shares(clock: Clock) -> None:
    made = Connections(8, lambda registry: 8, clock)
    shares = [made.share("a") for _ in range(3)]
    take(shares[0], 8)
    waiters = [Waiting(share) for share in shares[1:]]
    for waiter in waiters:
        assert shares[0].yields()
        shares[0].release()
        assert waiter.got.wait(SECONDS)
    for _ in range(20):
        for share in shares:
            if share.yields():
                share.release()
            take(share)
    assert sorted(share.count for share in shares) == [2, 3, 3]
    assert not any(share.is_wanted for share in shares)


def test_only_the_one_that_has_most_gives(clock: Clock) -> None:
    made = Connections(8, lambda registry: 8, clock)
    rich, fair, poor = made.share("a"), made.share("a"), made.share("a")
    take(fair, 3)
    take(rich, 5)
    waiter = Waiting(poor)
    assert not fair.is_wanted
    assert [rich.yields() for _ in range(8)] == [True, True] + [False] * 6
    waiter.end()


def test_a_full_registry_is_no_reason_for_jobs_of_others_to_give(clock: Clock) -> None:
    made = Connections(8, lambda registry: 2, clock)
    one, elsewhere, poor = made.share("a"), made.share("b"), made.share("a")
    take(one, 2)
    take(elsewhere, 2)
    waiter = Waiting(poor)
    assert one.is_wanted
    assert not elsewhere.is_wanted
    assert take(elsewhere) == 0
    waiter.end()


def test_who_waits_at_a_full_registry_keeps_nobody_else_from_the_nodes_last_one(clock: Clock) -> None:
    made = Connections(2, lambda registry: 1, clock)
    one, poor, elsewhere = made.share("a"), made.share("a"), made.share("b")
    take(one)
    waiter = Waiting(poor)
    assert take(elsewhere) == 1
    waiter.end()


def test_with_more_jobs_than_connections_they_take_turns(clock: Clock) -> None:
    made = Connections(2, lambda registry: 2, clock)
    older, newer, poor = made.share("a"), made.share("b"), made.share("c")
    take(older)
    clock.now += TURN_SECONDS
    take(newer)
    waiter = Waiting(poor)
    assert not older.is_wanted  # the one who waits has not waited for a turn yet
    clock.now += TURN_SECONDS
    assert not newer.is_wanted
    assert older.yields()
    older.release()
    assert waiter.got.wait(SECONDS)
    waiter.end()


def test_nobody_overdraws_however_many_threads_take_and_give() -> None:
    made = Connections(5, lambda registry: 3)
    seen: list[int] = []
    shares = [made.share("ab"[number % 2], (lambda: True) if number % 3 else never) for number in range(8)]

    def work(share: Share) -> None:
        for _ in range(30):
            assert share.acquire(wait=True, cancelled=never)
            seen.append(sum(each.count for each in shares))
            share.yields()
            share.release()

    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 240
    assert max(seen) <= 5
    assert all(share.count == 0 and share.leaving == 0 for share in shares)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def processes(store: Store, limit: int, of_registry: int) -> tuple[Connections, Connections]:
    """What two processes on one store have each."""
    first, second = (Connections(limit, lambda registry: of_registry, others=Neighbours(store)) for _ in range(2))
    return first, second


def give(share: Share) -> int:
    """How many it gives back because others need them more."""
    count = 0
    while share.yields():
        share.release()
        count += 1
    return count


def test_a_prefetch_makes_way_for_a_pod_of_another_process_and_comes_back_after_it(store: Store) -> None:
    mine, drivers = processes(store, 4, 4)
    prefetch, pod = mine.share("one", lambda: False), drivers.share("one")
    assert take(prefetch, 4) == 4
    assert take(pod, 3) == 3  # it waits for nobody else's
    assert give(prefetch) == 3
    assert take(prefetch) == 0
    pod.release()
    assert take(prefetch, 3) == 1
    assert give(prefetch) == 0
    for _ in range(2):
        pod.release()
    assert take(prefetch, 4) == 2
    assert give(pod) == 0


def test_of_other_processes_only_what_is_awaited_counts_and_only_for_a_prefetch(store: Store) -> None:
    mine, drivers = processes(store, 2, 2)
    first, second = mine.share("one", lambda: False), drivers.share("one", lambda: False)
    assert take(first, 2) == take(second, 2) == 2
    assert give(first) == give(second) == 0
    pods = [mine.share("two"), drivers.share("two")]
    assert give(first) == give(second) == 0
    first.release()
    first.release()
    assert take(pods[0], 2) == 2
    assert give(second) == 2
    assert take(pods[1], 2) == 2
    assert give(pods[0]) == give(pods[1]) == 0


def test_a_pod_at_one_registry_leaves_a_prefetch_at_another_what_the_node_has_left(store: Store) -> None:
    mine, drivers = processes(store, 3, 2)
    prefetch, pod = mine.share("one", lambda: False), drivers.share("two")
    assert take(prefetch, 2) == 2
    assert take(pod, 1) == 1
    assert give(prefetch) == 0
    assert take(pod, 1) == 1
    assert give(prefetch) == 1


def test_a_prefetch_that_somebody_begins_to_wait_for_is_told_to_others(store: Store) -> None:
    mine, drivers = processes(store, 1, 1)
    joined: list[bool] = []
    prefetch, other = mine.share("one", lambda: bool(joined)), drivers.share("one", lambda: False)
    assert take(prefetch) == take(other) == 1
    assert give(other) == give(prefetch) == 0
    joined.append(True)
    assert give(prefetch) == 0
    assert give(other) == 1


def test_nothing_is_open_when_nobody_has_any(store: Store) -> None:
    mine, _ = processes(store, 1, 1)
    share = mine.share("one", lambda: False)
    path = str(store.root / "locks" / "connections")
    assert take(share) == 1
    assert not share.is_wanted
    assert path in opened()
    share.release()
    assert not share.is_wanted
    assert path not in opened()


def opened() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def test_where_the_store_cannot_tell_there_are_no_others(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    mine, drivers = processes(store, 1, 1)
    prefetch, pod = mine.share("one", lambda: False), drivers.share("one")
    (store.root / "locks" / "connections").mkdir()
    assert take(prefetch) == take(pod) == 1
    assert give(prefetch) == 0
    assert len([each for each in caplog.records if "make way" in each.message]) == 2
