"""Calls that meet: two publishes, a publish and an unpublish at each step of it, callers that go away. Row N8."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmount.errors import Cancelled, Conflict, Pending
from modelmount.system import atomic
from modelmount.volumes.leases import target_lock_name
from tests.fakes import mounts
from tests.unit.volumes.conftest import EVENT_SECONDS, Call, Node, contents, until

pytestmark = [pytest.mark.mount, pytest.mark.registry]

FILES = {"config.json": b"{}\n", "model.safetensors": b"weights" * 1000}


def test_n8_publishes_of_one_target_at_once_all_succeed_with_one_mount_and_one_download(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.gate.clear()
    calls = [node.background(lambda: node.publish(target, pushed.reference)) for _ in range(8)]
    node.await_waiting(8)
    node.gate.set()
    assert [call.result() for call in calls] == [None] * 8
    assert mounts.below(node.directory) == [target]
    assert contents(target) == FILES
    assert set(node.registry.blob_gets().values()) == {1}


def test_publishes_of_many_targets_at_once_share_one_download(node: Node) -> None:
    pushed = node.push(FILES)
    calls = [
        node.background(publishing(node, node.target(f"pod-{n}"), pushed.reference, f"volume-{n}")) for n in range(10)
    ]
    assert [call.result() for call in calls] == [None] * 10
    assert len(mounts.below(node.directory)) == 10
    assert set(node.registry.blob_gets().values()) == {1}


def publishing(node: Node, target: Path, model: str, volume: str) -> Callable[[], None]:
    return lambda: node.publish(target, model, volume=volume)


def test_n8_of_two_with_other_attributes_one_wins_and_the_other_conflicts(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.gate.clear()
    calls = [node.background(publishing(node, target, m, "volume")) for m in (pushed.reference, pushed.pinned)]
    node.await_waiting(2)
    node.gate.set()
    results = [call.result() for call in calls]
    assert [type(r) for r in results if r is not None] == [Conflict]
    assert mounts.below(node.directory) == [target]


def test_of_two_volumes_at_one_target_one_wins(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.gate.clear()
    calls = [node.background(publishing(node, target, pushed.reference, volume)) for volume in ("one", "two")]
    node.await_waiting(2)
    node.gate.set()
    results = [call.result() for call in calls]
    assert [type(r).__name__ for r in results if r is not None] == ["Precondition"]
    assert mounts.below(node.directory) == [target]
    assert len(node.lease_files()) == 1


def test_an_unpublish_ends_the_wait_and_nothing_is_mounted_afterwards(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.gate.clear()
    call = node.background(lambda: node.publish(target, pushed.reference))
    node.await_waiting()
    node.unpublish(target)
    error = call.result()
    assert isinstance(error, Pending)
    assert "was unpublished" in error.message
    node.gate.set()
    (job,) = node.puller.jobs()
    until(job.ended.is_set)
    node.assert_nothing_left()


def test_an_unpublish_of_another_target_disturbs_nobody(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.gate.clear()
    call = node.background(lambda: node.publish(target, pushed.reference))
    node.await_waiting()
    node.unpublish(node.target("other"))
    assert call.running
    node.gate.set()
    assert call.result() is None


def test_a_publish_after_the_unpublish_is_a_new_one(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.gate.clear()
    first = node.background(lambda: node.publish(target, pushed.reference))
    node.await_waiting()
    node.unpublish(target)
    assert first.result() is not None
    second = node.background(lambda: node.publish(target, pushed.reference))
    node.await_waiting()
    node.gate.set()
    assert second.result() is None
    assert contents(target) == FILES


def test_an_unpublish_between_proof_and_mount_wins(node: Node) -> None:
    """The publish began before it and would mount after it: it must not."""
    pushed, target = node.push(FILES), node.target()
    node.publish(node.target("warm"), pushed.reference)
    with node.store.lock(target_lock_name(str(target))).acquire() as held:
        publish = node.background(lambda: node.publish(target, pushed.reference, volume="late"))
        until(lambda: bool(node.registry.manifest_requests()))
        unpublish = node.background(lambda: node.unpublish(target, volume="late"))
        with node.publisher._attempts._lock:
            (attempt,) = node.publisher._attempts._by_path[str(target)]
        attempt.overtake()  # whoever of the two gets the lock first, this is what the unpublish does under it
        held.release()
    assert unpublish.result() is None
    assert isinstance(publish.result(), Pending)
    assert not target.exists()


@pytest.mark.parametrize("where", ["volumes.publish.before_mount", "volumes.publish.after_mount"])
def test_an_unpublish_between_lease_and_answer_waits_and_then_takes_all_away(node: Node, where: str) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(node.target("warm"), pushed.reference, volume="warm")
    with atomic.armed(f"{where}=delay(300)"):
        publish = node.background(lambda: node.publish(target, pushed.reference))
        until(lambda: len(node.lease_files()) == 2)
        node.unpublish(target)
    assert publish.result() is None
    assert not target.exists()
    assert len(node.lease_files()) == 1
    assert mounts.below(node.directory) == [node.target("warm")]


def test_a_caller_that_goes_away_is_let_go_and_the_pull_goes_on(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.gate.clear()
    call = Call()
    publish = node.background(lambda: node.publish(target, pushed.reference, call=call))
    node.await_waiting()
    call.cancelled.set()
    assert isinstance(publish.result(), Cancelled)
    node.gate.set()
    (job,) = node.puller.jobs()
    until(job.ended.is_set)
    node.assert_nothing_left()
    node.registry.forget()
    node.publish(target, pushed.reference)
    assert node.registry.blob_gets() == {}


def test_a_caller_that_went_away_before_the_mount_gets_none(node: Node) -> None:
    pushed = node.push(FILES)
    node.publish(node.target("warm"), pushed.reference)
    call = Call()
    call.cancelled.set()
    with pytest.raises(Cancelled):
        node.publish(node.target(), pushed.reference, call=call, volume="two")
    assert not node.target().exists()


def test_a_busy_target_is_pending(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.publish(node.target("warm"), pushed.reference)
    with node.store.lock(target_lock_name(str(target))).acquire(), pytest.raises(Pending, match="another call"):
        node.publish(target, pushed.reference, call=Call(time.monotonic() + 0.2))


def test_a_waiting_publish_holds_no_lock(node: Node) -> None:
    pushed, target = node.push(FILES), node.target()
    node.gate.clear()
    call = node.background(lambda: node.publish(target, pushed.reference))
    node.await_waiting()
    with node.store.lock(target_lock_name(str(target))).acquire(timeout=0):
        pass
    with node.store.locks.exclusive(timeout=EVENT_SECONDS):  # the pull itself takes it shared now and then
        pass
    node.gate.set()
    assert call.result() is None


def test_a_stopped_pull_is_pending(node: Node) -> None:
    pushed = node.push(FILES)
    node.gate.clear()
    call = node.background(lambda: node.publish(node.target(), pushed.reference))
    node.await_waiting()
    (job,) = node.puller.jobs()
    job.cancel.set()
    node.gate.set()
    result = call.result()
    assert result is None or isinstance(result, Pending)


def test_attempts_are_forgotten(node: Node) -> None:
    node.publish(node.target(), node.push(FILES).reference)
    node.unpublish(node.target())
    assert node.publisher._attempts._by_path == {}


def test_a_storm_of_both_ends_in_order(node: Node) -> None:
    """Publishes and unpublishes of one target from several threads; at the end nothing is inconsistent."""
    pushed, target = node.push(FILES), node.target()
    node.publish(node.target("warm"), pushed.reference, volume="warm")
    stop = threading.Event()
    problems: list[BaseException] = []

    def storm(action: Callable[[], None]) -> None:
        while not stop.is_set():
            try:
                action()
            except Pending:
                continue
            except BaseException as e:  # noqa: BLE001 - shown below
                problems.append(e)
                return

    actions = [lambda: node.publish(target, pushed.reference)] * 2 + [lambda: node.unpublish(target)] * 2
    threads = [threading.Thread(target=storm, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    stop.wait(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    node.publish(target, pushed.reference)
    assert contents(target) == FILES
    assert len(mounts.below(target)) == 1
    node.unpublish(target)
    assert not target.exists()
    assert len(node.lease_files()) == 1
