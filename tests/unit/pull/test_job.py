"""A job as its callers see it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from modelmount.errors import Unavailable
from modelmount.formats.selection import EVERYTHING
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.pull.job import Job, State, Waiter
from modelmount.pull.resolver import Model
from modelmount.registry.credentials import Credential
from modelmount.snapshots.tree import Tree

MODEL = Model(Repository("registry.example.com", "llm/tiny"), Digest.of(b"manifest"))
TREE = Tree("id", Path("/nowhere"), 1, 1)


@pytest.fixture
def job() -> Job:
    return Job(MODEL, EVERYTHING, Credential.anonymous())


def test_every_waiter_gets_the_tree(job: Job) -> None:
    found: list[Tree | None] = []
    threads = [threading.Thread(target=lambda: found.append(job.wait(Waiter(), 60))) for _ in range(5)]
    for thread in threads:
        thread.start()
    job.finish(TREE)
    for thread in threads:
        thread.join()
    assert found == [TREE] * 5
    assert job.state is State.DONE


def test_a_wait_that_is_over_returns_nothing_and_the_job_goes_on(job: Job) -> None:
    assert job.wait(Waiter(), 0.0) is None
    assert job.state is State.RUNNING


def test_an_abandoned_waiter_returns_at_once(job: Job) -> None:
    waiter = Waiter()
    waiter.abandon()
    assert job.wait(waiter, 3600) is None
    assert waiter.abandoned


def test_a_failure_reaches_each_waiter_as_an_instance_of_its_own(job: Job) -> None:
    failure = Unavailable("the registry is down", retry_after=3.0)
    job.finish(failure)
    seen = []
    for _ in range(2):
        with pytest.raises(Unavailable, match="the registry is down") as caught:
            job.wait(Waiter(), 0)
        seen.append(caught.value)
    assert seen[0] is not seen[1] is not failure
    assert seen[0].retry_after == 3.0


def test_the_newest_proved_credential_is_used(job: Job) -> None:
    newer = Credential(username="robot", password="x")
    job.join(newer)
    assert job.credential is newer


def test_nobody_asking_makes_it_idle_and_a_waiter_does_not(job: Job) -> None:
    waiting = threading.Event()

    class Announced(Waiter):
        def sleep(self, seconds: float) -> None:
            waiting.set()
            super().sleep(seconds)

    waiter = Announced()
    thread = threading.Thread(target=job.wait, args=(waiter, 60))
    thread.start()
    waiting.wait(10)
    assert job.idle_seconds == 0.0
    waiter.abandon()
    thread.join()
    assert job.idle_seconds >= 0.0
