"""A node without its door, in a process of its own that can be killed, made to fail and asked: real rooms, put together
as everywhere, at a real registry, with real mounts.

The processes are forked from one that has everything imported, so that each costs milliseconds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO, Any
from unittest import mock

import msgspec
import pytest
from prometheus_client import REGISTRY

from modelmount import cli, wiring
from modelmount.cache import quarantine
from modelmount.config import Settings
from modelmount.content import checkpoints
from modelmount.errors import ModelMountError
from modelmount.service.ports import Call, PublishRequest
from modelmount.system import failpoints, host
from modelmount.transport.retry import Policy
from modelmount.volumes import recovery
from tests.fakes.driver import Driver, Process
from tests.faults import interception
from tests.faults.interception import Decision, Interceptor

PATIENCE_SECONDS = 60.0
CHECKPOINT_BYTES = 300 << 10
"""So that a small model has some."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["__main__", "modelmount.cli.serve", "modelmount.daemon", "tests.faults.victim"])


class DiedError(Exception):
    """The process ended before it answered."""


@dataclass(frozen=True)
class Plan:
    """What a process needs to know. `failpoints` as in their environment variable; `boot` is the boot it lives in."""

    settings: dict[str, Any]
    failpoints: str = ""
    boot: str = "boot"
    watched: bool = False


@dataclass(frozen=True)
class Answer:
    """What became of one thing that was asked: an empty `error` for success, else its class and its sentence."""

    error: str = ""
    sentence: str = ""
    value: Any = None

    @property
    def ok(self) -> bool:
        return not self.error


class Victim:
    """The process, from outside. One thread at a time."""

    def __init__(self, plan: Plan, directory: Path, decide: Decision | None = None) -> None:
        """Starts it, and with `decide` answers for its system calls below `directory`."""
        self._talk, theirs = _context.Pipe()
        watched = Plan(plan.settings, plan.failpoints, plan.boot, watched=decide is not None)
        self._process: ForkServerProcess = _context.Process(target=_live, args=(theirs, watched), daemon=True)
        self._process.start()
        theirs.close()
        self._interceptor = Interceptor(self._talk, directory, decide) if decide is not None else None

    def decide(self, decide: Decision) -> None:
        """From now on."""
        assert self._interceptor is not None
        self._interceptor.decide = decide

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, what: str, *arguments: Any) -> Answer:
        """Have it do something. Raises DiedError."""
        self.tell(what, *arguments)
        return self.hear()

    def tell(self, what: str, *arguments: Any) -> None:
        """`ask` without waiting."""
        try:
            self._talk.send((what, arguments))
        except OSError as e:
            raise DiedError(what) from e

    def hear(self) -> Answer:
        """The next answer. Raises DiedError."""
        try:
            if not self._talk.poll(2 * PATIENCE_SECONDS):
                pytest.fail("a node that was asked something never answered")
            answer: Answer = self._talk.recv()
        except (EOFError, OSError) as e:
            raise DiedError(str(self.wait())) from e
        return answer

    def heard(self) -> Iterator[Answer]:
        """What it still said before it died."""
        with contextlib.suppress(EOFError, OSError):
            while self._talk.poll():
                yield self._talk.recv()

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        self._process.join(PATIENCE_SECONDS)
        assert self._process.exitcode is not None, "a node that should have died lives"
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; twice is harmless."""
        self._process.kill()
        self.wait()

    def close(self) -> None:
        """Kill it and let go of what watches it."""
        self.kill()
        if self._interceptor is not None:
            self._interceptor.close()
        self._talk.close()


class ForkedDriver(Driver):
    """The whole driver, door and all, for those who start it very often: its process is forked too."""

    def _spawn(self, output: IO[bytes], failpoints: str) -> Process:
        line = ("serve", "--config", str(self.config))
        process = _context.Process(target=_run, args=(str(self.log), failpoints, line), daemon=True)
        process.start()
        return _Forked(process)


class _Forked:
    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("modelmount serve", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int, /) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)


def command(driver: Driver, *arguments: str) -> ForkServerProcess:
    """The command line beside a driver, begun in a process of its own; what it says goes into the driver's log."""
    driver.write_config()
    line = (arguments[0], "--config", str(driver.config), *arguments[1:])
    process = _context.Process(target=_run, args=(str(driver.log), "", line), daemon=True)
    process.start()
    return process


def _run(log: str, points: str, line: tuple[str, ...]) -> None:
    """The program with this command line, its output in a file."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    failpoints._active = failpoints.Failpoints(points)
    sys.argv = ["modelmount", *line]
    cli.main()


def _live(talk: Connection, plan: Plan) -> None:
    """The life of the process."""
    failpoints._active = failpoints.Failpoints(plan.failpoints)
    mock.patch.object(host, "boot_id", lambda: plan.boot).start()
    mock.patch.object(checkpoints, "CHECKPOINT_BYTES", CHECKPOINT_BYTES).start()
    mock.patch.object(Policy, "delay", lambda *_: 0.0).start()
    os.umask(0o077)
    if plan.watched:
        interception.submit(talk)
    _Life(talk, msgspec.convert(plan.settings, Settings)).run()


class _Life:
    def __init__(self, talk: Connection, settings: Settings) -> None:
        self._talk, self._settings = talk, settings
        self._node: wiring.Node | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        while True:
            try:
                what, arguments = self._talk.recv()
            except EOFError:
                os._exit(0)
            self._say(self._do(what, arguments))
            if what == "end":
                os._exit(0)

    def _say(self, answer: Answer) -> None:
        with self._lock:
            self._talk.send(answer)

    def _do(self, what: str, arguments: tuple[Any, ...]) -> Answer:
        try:
            return Answer(value=getattr(self, what)(*arguments))
        except (ModelMountError, OSError) as e:
            return Answer(type(e).__name__, str(e))
        except Exception as e:  # noqa: BLE001 - the test judges
            return Answer(f"unexpected {type(e).__name__}", str(e))

    # -- what can be asked

    def start(self) -> None:
        """As a driver does before it serves."""
        if self._node is not None:
            self._node.close()
        self._node = wiring.build(self._settings)
        recovery.recover(self._node.store, self._settings)

    def publish(self, volume: str, target: str, attributes: Mapping[str, str]) -> None:
        request = PublishRequest(volume, target, attributes, {}, (), True)
        self.node.publisher.publish(request, Call(time.monotonic() + PATIENCE_SECONDS, threading.Event()))

    def unpublish(self, volume: str, target: str) -> None:
        self.node.publisher.unpublish(volume, target)

    def collect(self) -> int:
        """Everything that may go."""
        with self.node.collector.exclusively():
            return len(self.node.collector.collect(float("inf"), grace_seconds=0.0).models)

    def isolate(self, item: str) -> bool:
        """As if a scrub had found it bad."""
        return quarantine.put(self.node.store, item, "a test says so") is not None

    def release(self) -> int:
        """As if everything had been in quarantine long enough."""
        return quarantine.release(self.node.store, keep_seconds=0.0)

    def used(self) -> int:
        """What the cache counts."""
        return self.node.collector.reader.used_bytes()

    def fetched(self) -> float:
        """Bytes of blobs that came, since this process began."""
        return REGISTRY.get_sample_value("modelmount_fetched_bytes_total") or 0.0

    def end(self) -> None:
        """In order."""
        if self._node is not None:
            self._node.close()

    def load(self, jobs: list[tuple[str, str, dict[str, str]]], rounds: int) -> None:
        """Publish and unpublish each of these all the time, and collect beside it. What was published is said with the
        target, and said again with a minus before it is unpublished.
        """
        threads = [threading.Thread(target=self._rounds, args=(*job, rounds), daemon=True) for job in jobs]
        threads.append(threading.Thread(target=self._collections, args=(rounds,), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _rounds(self, volume: str, target: str, attributes: dict[str, str], rounds: int) -> None:
        for _ in range(rounds):
            done = self._do("publish", (volume, target, attributes))
            self._say(Answer(done.error, done.sentence, f"+{target}"))
            self._say(Answer(value=f"-{target}"))
            done = self._do("unpublish", (volume, target))
            if not done.ok:
                self._say(Answer(done.error, done.sentence, f"-{target}"))

    def _collections(self, rounds: int) -> None:
        for _ in range(rounds):
            done = self._do("collect", ())
            if not done.ok:
                self._say(Answer(done.error, done.sentence, "collect"))

    @property
    def node(self) -> wiring.Node:
        assert self._node is not None, "not started"
        return self._node
