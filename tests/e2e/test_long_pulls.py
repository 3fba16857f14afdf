"""Pulls that outlast a call, a driver or a pod: what arrived is not fetched again, and the owner reads what goes on.

Shown by bytes in the registry's log, never by time: a proxy holds the bytes back until the test has seen enough.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.conftest import Node, contents, random_bytes
from tests.fakes import mounts, push
from tests.fakes.proxy import Proxy
from tests.fakes.registry import Registry
from tests.faults.processes import connections_at
from tests.faults.scene import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.registry]

WEIGHTS_BYTES = 48 << 20
SLOW = 4e6
"""Bytes a second: the weights take 12 s, many times what a call may wait at this scale."""
TRICKLE = 150e3
"""Bytes a second: the weights would take more than five minutes."""
PATIENT_CALLS = 10
HELD_AT = WEIGHTS_BYTES * 3 // 4
"""After so many bytes nothing more comes until the test goes on, however slowly it runs itself."""
PIECE_BYTES = 1 << 20
"""What a killed driver may lose: the piece that wasn't journalled yet."""
BUFFERED_BYTES = 256 << 10
"""What may lie between the proxy and a driver that reads."""
OTHER_BYTES = 64 << 10
"""Headers, the manifest, the other file."""
IN_FLIGHT_BYTES = WEIGHTS_BYTES // 2
"""What the registry had handed to connections that were divided: sent, counted by it, and never received."""
SECONDS = 120.0
SCALE = 1 / 60
"""The kubelet's two minutes become two seconds."""

PROGRESS = re.compile(
    r"pulling \S+/llm/big:v1: \d+ percent \([\d.]+ of [\d.]+ MB\) at [\d.]+ [kM]B/s, about (\d+ min )?\d+ s left, "
    r"\d of 2 files ready"
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "big"
    directory.mkdir()
    (directory / "config.json").write_text("{}\n")
    (directory / "model.safetensors").write_bytes(random_bytes(WEIGHTS_BYTES, 1))
    return directory


@dataclass
class SlowNode:
    """A node that reaches its registry through a proxy."""

    node: Node
    proxy: Proxy
    reference: str = ""

    def put(self, files: Path, packing: push.Packing = "raw") -> push.Pushed:
        pushed = self.node.pusher.artifact("llm/big", "v1", push.modelpack(files, packing=packing))
        self.reference = f"{self.proxy.host}/llm/big:v1"
        return pushed

    def forget(self) -> None:
        """Count requests from here: the driver has ended, and the registry logs a request when it sees that."""
        wait_for(lambda: not connections_at(self.node.registry.port), "the registry to see that its client is gone")
        self.node.registry.forget()

    def start_with_one_connection(self) -> None:
        """Start the driver again. Nobody takes over a part of what another one is at, so that what the registry sends
        is what the driver gets, on however slow a machine.
        """
        self.node.driver.settings["pull"] = {"connections": 1}
        self.node.driver.start()

    def let_go(self, rate: float | None = None) -> None:
        """The rest may come, at this rate."""
        self.proxy.rate, self.proxy.hold_at = rate, None

    def journalled(self) -> int:
        """Bytes of the weights that the journal speaks of: what a killed driver's successor need not fetch."""
        found: dict[int, int] = {}
        for path in (self.node.driver.store / "ingest").glob("*/journal"):
            for line in path.read_text().split("\n"):
                fields = line.split(" ")
                if len(fields) == 4:
                    found[int(fields[0])] = int(fields[1])
        return sum(found.values())

    def wait_partial(self, count: int) -> None:
        self.node.kubelet.wait_until(lambda: self.journalled() >= count, f"{count} bytes to arrive")

    def served(self, pushed: push.Pushed) -> int:
        """Bytes of the weights that the registry sent. Those on their way when a connection ended count too."""
        return sum(size for status, size in self.weights_answers(pushed) if status in {200, 206})

    @staticmethod
    def weights(pushed: push.Pushed) -> dict[str, Any]:
        """The descriptor of the weights' layer."""
        layer: dict[str, Any] = max(json.loads(pushed.document)["layers"], key=lambda layer: layer["size"])
        return layer

    def weights_answers(self, pushed: push.Pushed) -> list[tuple[int, int]]:
        """Status and bytes of each answer that carried some of the weights."""
        weights = self.weights(pushed)["digest"]
        return [(r.status, r.size) for r in self.node.registry.requests() if r.digest == weights and r.method == "GET"]


@pytest.fixture
def slow(make_node: Callable[..., Node], tmp_path: Path) -> Iterator[SlowNode]:
    with Registry(tmp_path / "registry") as registry, Proxy(registry.port, rate=SLOW, hold_at=HELD_AT) as proxy:
        yield SlowNode(make_node(registry=registry, through=proxy, scale=SCALE), proxy)


def test_calls_that_cannot_finish_answer_aborted_with_progress_and_the_pull_goes_on(
    slow: SlowNode, files: Path
) -> None:
    pushed = slow.put(files)
    pod = slow.node.pod("patient", slow.reference)
    slow.node.kubelet.wait_event("FailedMount", "files ready", pod=pod)
    slow.node.kubelet.wait_event("FailedMount", "of 50.3 MB", pod=pod)
    slow.let_go()
    slow.node.kubelet.wait_running(pod)
    calls = slow.node.kubelet.calls_to("NodePublishVolume", pod)
    # A machine that is too busy to answer within the last sixth of a second of a call is no fault of the driver's.
    codes = {call.code for call in calls[:-1]}
    assert grpc.StatusCode.ABORTED in codes
    assert codes <= {grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert any(PROGRESS.search(call.message) for call in calls), [call.message for call in calls]
    assert contents(slow.node.mount(pod)) == contents(files)
    assert slow.served(pushed) <= WEIGHTS_BYTES + IN_FLIGHT_BYTES


def test_ten_calls_come_and_go_and_the_pod_starts_at_the_very_next_one(
    slow: SlowNode, files: Path, record_property: Callable[[str, object], None]
) -> None:
    """Nothing is held back: a pull that trickles outlasts the kubelet's calls, with its pauses between them."""
    pushed, kubelet = slow.put(files), slow.node.kubelet
    slow.node.driver.stop()
    slow.let_go(TRICKLE)
    slow.node.driver.settings["publish"] = {"wait_seconds": 0.2}
    slow.start_with_one_connection()
    pod = slow.node.pod("very patient", slow.reference)

    def told() -> int:
        return sum("pulling" in call.message for call in kubelet.calls_to("NodePublishVolume", pod))

    kubelet.wait_until(lambda: told() >= PATIENT_CALLS, f"{PATIENT_CALLS} calls to come and go")
    slow.let_go()
    wait_for(lambda: '"model ready"' in slow.node.driver.log.read_text(), "the pull to end")
    earlier = len(kubelet.calls_to("NodePublishVolume", pod))
    kubelet.wait_running(pod)
    calls = kubelet.calls_to("NodePublishVolume", pod)
    assert len(calls) - earlier <= 2, "one that was on its way, and the next"
    assert [call.code for call in calls][-1] is grpc.StatusCode.OK
    assert slow.served(pushed) == WEIGHTS_BYTES
    assert contents(slow.node.mount(pod)) == contents(files)
    pauses = [seconds for target, seconds in kubelet.pauses if target == str(slow.node.mount(pod))]
    assert pauses[:PATIENT_CALLS] == [0.5, 1, 2, 4, 8, 16, 32, 64, 122, 122]
    record_property("kubelet_calls", len(calls))
    record_property("kubelet_pauses_s", pauses)
    print(f"long pull: {len(calls)} calls, pauses of {pauses} s in a real kubelet, no byte twice")


@pytest.mark.parametrize("packing", ["raw", "tar"])
def test_a_killed_driver_loses_at_most_a_piece_of_each_connection(
    slow: SlowNode, files: Path, packing: push.Packing
) -> None:
    pushed = slow.put(files, packing)
    pod = slow.node.pod("patient", slow.reference)
    slow.wait_partial(WEIGHTS_BYTES // 3)
    slow.node.driver.kill()
    had, passed = slow.journalled(), slow.proxy.passed
    connections = len(slow.weights_answers(pushed))
    assert passed - had <= connections * (PIECE_BYTES + BUFFERED_BYTES) + OTHER_BYTES
    slow.let_go()
    slow.forget()
    slow.start_with_one_connection()
    slow.node.kubelet.wait_running(pod)
    assert slow.served(pushed) == slow.weights(pushed)["size"] - had
    assert contents(slow.node.mount(pod)) == contents(files)


def test_a_stopped_driver_keeps_every_byte(slow: SlowNode, files: Path) -> None:
    pushed = slow.put(files)
    pod = slow.node.pod("patient", slow.reference)
    slow.wait_partial(WEIGHTS_BYTES // 3)
    assert slow.node.driver.stop() == 0
    had = slow.journalled()
    slow.let_go()
    slow.forget()
    slow.start_with_one_connection()
    slow.node.kubelet.wait_running(pod)
    assert slow.served(pushed) == WEIGHTS_BYTES - had
    assert contents(slow.node.mount(pod)) == contents(files)


def test_a_connection_that_is_cut_again_and_again_still_gets_there(slow: SlowNode, files: Path) -> None:
    pushed = slow.put(files)
    slow.let_go()
    slow.proxy.cut_after = 10 << 20
    pod = slow.node.pod("patient", slow.reference)
    slow.node.kubelet.wait_running(pod)
    answers = slow.weights_answers(pushed)
    assert len(answers) >= WEIGHTS_BYTES // (10 << 20)
    assert 200 not in {status for status, _ in answers[1:]}
    assert contents(slow.node.mount(pod)) == contents(files)


def test_a_pod_deleted_in_the_middle_leaves_no_mount_and_no_lease(slow: SlowNode, files: Path) -> None:
    pushed = slow.put(files)
    pod = slow.node.pod("short-lived", slow.reference)
    slow.wait_partial(4 << 20)
    slow.node.kubelet.delete(pod)
    slow.node.kubelet.wait_gone(pod)
    slow.let_go()
    again = slow.node.pod("next", slow.reference)
    slow.node.kubelet.wait_running(again)
    assert mounts.below(slow.node.directory) == [slow.node.mount(again)]
    assert len(slow.node.leases()) == 1
    assert slow.node.kubelet.leftovers() == []
    assert slow.served(pushed) <= WEIGHTS_BYTES + IN_FLIGHT_BYTES


def test_the_cli_beside_the_driver_joins_the_same_download(slow: SlowNode, files: Path) -> None:
    pushed = slow.put(files)
    pod = slow.node.pod("patient", slow.reference)
    slow.wait_partial(4 << 20)
    slow.let_go(40e6)
    done = slow.node.driver.run("pull", slow.reference)
    assert done.returncode == 0, done.stderr
    slow.node.kubelet.wait_running(pod)
    assert slow.served(pushed) <= WEIGHTS_BYTES + IN_FLIGHT_BYTES
    assert pushed.digest in done.stdout


def test_a_pull_on_the_command_line_makes_way_for_a_pod_and_goes_on_after_it(
    slow: SlowNode, files: Path, tmp_path: Path
) -> None:
    pushed, node = slow.put(files), slow.node
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods/model.safetensors").write_bytes(random_bytes(4 << 20, 2))
    wanted = push.modelpack(tmp_path / "pods")
    node.pusher.artifact("llm/pods", "v1", wanted)
    slow.let_go(SLOW)
    with Proxy(node.registry.port, hold_at=1 << 20) as pods:
        node.driver.stop()
        node.driver.settings |= {"pull": {"connections": 1}, "registries": {pods.host: {"plain_http": True}}}
        node.driver.start()
        said = tmp_path / "said"
        with (
            said.open("wb") as out,
            subprocess.Popen(
                node.driver.command("pull", slow.reference, "--json"), env=node.driver.environment(), stdout=out
            ) as pulling,
        ):
            try:
                slow.wait_partial(4 << 20)
                before = len(slow.weights_answers(pushed))
                slow.let_go(TRICKLE)
                pod = node.pod("patient", f"{pods.host}/llm/pods:v1")
                node.kubelet.wait_until(lambda: pods.passed >= 1 << 20, "the pod's model to be under way")
                node.kubelet.wait_until(
                    lambda: len(slow.weights_answers(pushed)) > before, "the other pull to make way"
                )
                assert pulling.poll() is None
                pods.hold_at = None
                node.kubelet.wait_running(pod)
                slow.let_go()
                assert pulling.wait(SECONDS) == 0
            finally:
                pulling.kill()
    assert len(slow.weights_answers(pushed)) > before + 1
    result = json.loads(said.read_text().splitlines()[-1])["result"]
    assert result["fetched_bytes"] <= result["bytes"] + OTHER_BYTES
