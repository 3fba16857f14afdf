"""Publish, unpublish, pull, cancel, evict, pin, kill, restart in random order, on a real driver and a real registry,
against a small model of what must hold.

The suite runs a few short histories, the same each time. More and longer ones, new each time:

    MODELMOUNT_HISTORIES=200 .venv/bin/pytest tests/faults/test_state_machine.py
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.e2e.conftest import contents, random_bytes
from tests.fakes import mounts, push
from tests.fakes.driver import Driver
from tests.fakes.kubelet import NOT_FINAL
from tests.fakes.plugins import outcome
from tests.fakes.registry import Registry
from tests.faults import oracle

HISTORIES = int(os.environ.get("MODELMOUNT_HISTORIES", "0"))
pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(900 + 120 * HISTORIES)]

EVENT_SECONDS = 120.0
"""How long a history waits for something that has to happen; not a duration that any test expects."""
PODS = ("a", "b", "c")
MODELS = ("llm/one:v1", "llm/one:v2", "llm/two:v1")
SETTINGS = {"cache": {"grace_seconds": 0.0, "scrub_bytes_per_second": 0}}
KILLED_AT = (
    "content.blob.before_rename",
    "content.blob.after_rename",
    "snapshots.tree.before_rename",
    "snapshots.tree.before_view",
    "volumes.lease.after_write",
    "volumes.publish.before_mount",
    "volumes.publish.after_mount",
)


@dataclass(frozen=True)
class World:
    """The registry, and each model's reference and files by its name."""

    registry: Registry
    references: dict[str, str]
    files: dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("histories")
    with Registry(directory / "registry") as registry:
        pusher = push.Pusher(registry.host, registry.connection)
        references, files = {}, {}
        for number, name in enumerate(MODELS):
            repository, _, tag = name.partition(":")
            model = directory / str(number)
            model.mkdir()
            (model / "common.bin").write_bytes(random_bytes(300_000, 1))
            (model / "own.safetensors").write_bytes(random_bytes(1_500_000, 10 + number))
            references[name] = pusher.artifact(repository, tag, push.modelpack(model)).reference
            files[name] = contents(model)
        yield World(registry, references, files)


class Histories(RuleBasedStateMachine):
    """`shown` is what each pod certainly has, `begun` what it may have: its publish was cut off, and a kubelet would
    try it again or unpublish it. `here` are models that are certainly complete, `unsure` ones that a cut off pull may
    still bring or hold. What of this is so depends on how quick everything was, so no choice does: rules that don't fit
    do nothing. Hypothesis takes it for an error of ours if the same choices lead to others another time.
    """

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, str] = {}
        self.begun: dict[str, str] = {}
        self.here: set[str] = set()
        self.unsure: set[str] = set()
        self.pinned: set[str] = set()
        self._directory = tempfile.TemporaryDirectory(prefix="mm-hist-")
        self.driver = Driver(Path(self._directory.name), [self.world.registry], settings=SETTINGS)

    @initialize()
    def begin(self) -> None:
        self.driver.start()

    @rule()
    def a_moment_passes(self) -> None:
        """Nothing happens. Hypothesis begins with the simplest history, which is nothing but this."""

    # -- what a kubelet does

    @rule(pod=st.sampled_from(PODS), model=st.sampled_from(MODELS))
    def publish(self, pod: str, model: str) -> None:
        model = self.begun.get(pod, model)  # a kubelet that doesn't know asks for the same again
        if self.shown.get(pod, model) != model:
            assert self._publish(pod, model) is grpc.StatusCode.ALREADY_EXISTS
            return
        self._publish_at_last(pod, model)

    @rule(pod=st.sampled_from(PODS), model=st.sampled_from(MODELS), patience=st.sampled_from((0.01, 0.05, 0.2)))
    def cancel_a_publish(self, pod: str, model: str, patience: float) -> None:
        if pod in self.shown or self.begun.get(pod, model) != model:
            return
        code = self._publish(pod, model, patience)
        assert code is grpc.StatusCode.OK or code in NOT_FINAL
        self._mark(pod, model, certain=code is grpc.StatusCode.OK)

    @rule(pod=st.sampled_from(PODS))
    def unpublish(self, pod: str) -> None:
        self.driver.unpublish(f"volume-{pod}", self.driver.target(pod), timeout=EVENT_SECONDS)
        self.shown.pop(pod, None)
        self.begun.pop(pod, None)
        assert not self.driver.target(pod).exists()

    # -- what an admin does

    @rule(model=st.sampled_from(MODELS))
    def pull(self, model: str) -> None:
        self._cli("pull", self.world.references[model])
        self.here.add(model)

    @rule()
    def evict(self) -> None:
        # A publish that died before its lease stood holds nothing, one that had its mount does.
        mounted = {model for pod, model in self.begun.items() if mounts.is_mounted(self.driver.target(pod))}
        held = self.pinned | set(self.shown.values()) | mounted
        self._cli("gc", "--all")
        complete = self._complete()
        assert self.here & held <= complete
        assert complete <= held | set(self.begun.values()) | self.unsure
        self.here &= complete

    @rule(model=st.sampled_from(MODELS))
    def pin(self, model: str) -> None:
        if model not in self.here - self.unsure:
            return
        self._cli("pin", self.world.references[model])
        self.pinned.add(model)

    @rule(model=st.sampled_from(MODELS))
    def unpin(self, model: str) -> None:
        if model in self.pinned:
            self._cli("unpin", self.world.references[model])
            self.pinned.discard(model)

    # -- what happens to a driver

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        if kill:
            self.driver.kill()
        else:
            assert self.driver.stop() == 0
        self._come_back()

    @rule(pod=st.sampled_from(PODS), model=st.sampled_from(MODELS), point=st.sampled_from(KILLED_AT))
    def die_in_a_publish(self, pod: str, model: str, point: str) -> None:
        if pod in self.shown or self.begun.get(pod, model) != model:
            return
        self.driver.stop()
        self.driver.start(failpoints=f"{point}=kill")
        code = self._publish(pod, model)
        if code is grpc.StatusCode.OK:  # what it would have died at was done already
            self._mark(pod, model, certain=True)
            self.driver.kill()
        else:
            self._mark(pod, model, certain=False)
            assert self.driver.wait_exit() == -9
        self._come_back()

    # -- what must hold

    @invariant()
    def pods_have_what_they_were_promised(self) -> None:
        for pod in PODS:
            target = self.driver.target(pod)
            if pod in self.shown:
                assert mounts.is_mounted(target)
            if pod in self.shown or (pod in self.begun and mounts.is_mounted(target)):
                model = self.shown.get(pod) or self.begun[pod]
                assert contents(target) == self.world.files[model]
            elif pod not in self.begun:
                assert not target.exists()
        leases = len(list((self.driver.store / "volumes").glob("[0-9a-f]*.json")))
        assert len(self.shown) <= leases <= len(self.shown) + len(self.begun)

    def teardown(self) -> None:
        try:
            if self.driver.socket.exists():
                self._end_well()
        finally:
            self.driver.kill()
            mounts.detach_below(Path(self._directory.name))
            self._directory.cleanup()

    def _end_well(self) -> None:
        """Once nobody needs anything, nothing is left."""
        for pod in PODS:
            self.unpublish(pod)
        for model in sorted(self.pinned):
            self._cli("unpin", self.world.references[model])
        self.pinned.clear()
        self.restart(kill=True)
        self._cli("gc", "--all")
        store = self.driver.store
        for room in ("blobs/sha256", "unpacked", "trees", "scopes", "ingest", "volumes", "trash", "quarantine"):
            assert os.listdir(store / room) == [], room
        assert mounts.below(self.driver.directory) == []

    # -- inside

    def _publish(self, pod: str, model: str, patience: float = EVENT_SECONDS) -> grpc.StatusCode:
        attributes = {"model": self.world.references[model]}
        try:
            self.driver.publish(f"volume-{pod}", self.driver.target(pod), attributes, timeout=patience)
        except grpc.RpcError as e:
            code, details = outcome(e)
            note(f"{pod} {model}: {code.name} {details}")
            return code
        return grpc.StatusCode.OK

    def _publish_at_last(self, pod: str, model: str) -> None:
        """As a kubelet, again and again while the answer isn't final."""
        deadline = time.monotonic() + EVENT_SECONDS
        while (code := self._publish(pod, model)) is not grpc.StatusCode.OK:
            assert code in NOT_FINAL, code
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self._mark(pod, model, certain=True)

    def _mark(self, pod: str, model: str, *, certain: bool) -> None:
        if certain:
            self.begun.pop(pod, None)
            self.shown[pod] = model
            self.here.add(model)
            self.unsure.discard(model)
        else:
            self.begun[pod] = model
            self.unsure.add(model)

    def _come_back(self) -> None:
        """The driver is dead: the store is whole. It starts: whoever had a model has it still, and is told so."""
        assert oracle.faults(self.driver.store) == []
        self.driver.start()
        assert oracle.half_made(self.driver.store) == []
        for pod, model in self.shown.items():
            assert self._publish(pod, model) is grpc.StatusCode.OK
        # Its jobs died with it: what they had brought is here or isn't, and nothing brings more.
        complete = self._complete()
        assert self.here - self.unsure <= complete
        self.here, self.unsure = complete, set()

    def _complete(self) -> set[str]:
        listed = json.loads(self._cli("ls", "--json"))["models"]
        names = {reference: name for name, reference in self.world.references.items()}
        return {names[r] for model in listed if model["complete"] for r in model["references"] if r in names}

    def _cli(self, *arguments: str) -> str:
        done = self.driver.run(*arguments, timeout=EVENT_SECONDS)
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_whatever_happens_in_whatever_order(world: World) -> None:
    Histories.world = world
    suite = settings(
        max_examples=HISTORIES or 3,
        stateful_step_count=40 if HISTORIES else 12,
        derandomize=not HISTORIES,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Histories, settings=suite, _min_steps=suite.stateful_step_count)
