"""What a confined process can't do, tried by real ones; and what it can, which is little."""

from __future__ import annotations

import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.system import confine, landlock, seccomp
from modelmount.system.workers import Ended, Helper, Worker

from . import deeds

ROOT = Path(__file__).parents[3]
KILLED = "killed"

needs_seccomp = pytest.mark.skipif(not seccomp.is_available(), reason="needs seccomp on a machine with a table")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    made = Helper("tests.unit.system.deeds", ROOT)
    yield made
    made.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    files = tmp_path / "files"
    files.mkdir(mode=0o700)
    (files / "victim").write_bytes(b"untouched")
    fd = os.open(files, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def confined(helper: Helper, deed: str, directory: int) -> Worker:
    worker = helper.start(deed.encode(), [directory])
    worker.control.settimeout(60)
    assert worker.control.recv(100) == b"confined"
    return worker


def told(worker: Worker) -> str:
    """What came of it; empty when it is gone."""
    try:
        return worker.control.recv(100).decode()
    except ConnectionError:
        return ""


def outcome(helper: Helper, deed: str, directory: int) -> tuple[str, Ended]:
    worker = confined(helper, deed, directory)
    try:
        said = told(worker)
        if not said:
            assert worker.wait(60) is not None
    finally:
        ended = worker.end()
    return said, ended


@needs_seccomp
@pytest.mark.parametrize(
    "deed",
    [
        "list the directory", "make a link", "make a hard link", "make a directory", "make a device", "make a pipe",
        "remove", "rename", "give a file away", "start a process", "run a program", "become root", "open a connection",
        "kill its parent", "leave its namespace", "make code",
    ],
)  # fmt: skip
def test_a_call_that_unpacking_does_not_need_kills_it(helper: Helper, directory: int, deed: str) -> None:
    said, ended = outcome(helper, deed, directory)
    assert (said, ended.status) == ("", -signal.SIGSYS)
    assert os.listdir(directory) == ["victim"]


@pytest.mark.skipif(not landlock.abi(), reason="needs Landlock")
@pytest.mark.parametrize(
    "deed",
    [
        "make a file above", "make a file elsewhere", "make a file in the root", "read a file of the system",
        "read what it made", "read its own memory",
    ],
)  # fmt: skip
def test_no_file_is_opened_but_new_ones_in_its_directory(
    helper: Helper, directory: int, deed: str, tmp_path: Path
) -> None:
    said, _ = outcome(helper, deed, directory)
    assert said == "EACCES"
    assert {path.name for path in tmp_path.iterdir()} == {"files"}
    assert not Path("/tmp/modelmount-escaped").exists()


def test_it_makes_files_in_its_directory_and_starts_threads(helper: Helper, directory: int) -> None:
    assert outcome(helper, "make a file", directory)[0] == "done"
    assert set(os.listdir(directory)) == {"victim", "7"}
    assert outcome(helper, "start a thread", directory)[0] == "1"


@pytest.mark.parametrize(
    ("deed", "said", "status"),
    [
        ("take memory", "MemoryError", None),
        ("write much", "EFBIG", None),
        ("open many", "EMFILE", None),
        ("take time", "", -signal.SIGXCPU),
        ("crash", "", -signal.SIGSEGV),
    ],
)
def test_it_ends_at_its_limits(
    helper: Helper, directory: int, deed: str, said: str, status: int | None, tmp_path: Path
) -> None:
    found, ended = outcome(helper, deed, directory)
    assert found == said
    if status is not None:
        assert ended.status == status
    assert (tmp_path / "files" / "victim").read_bytes() == b"untouched"
    much = tmp_path / "files" / "much"
    assert not much.exists() or much.stat().st_size <= deeds.LIMITS.file_bytes


@needs_root
def test_the_kernel_says_that_it_has_no_rights(helper: Helper, directory: int) -> None:
    worker = confined(helper, "nothing", directory)
    try:
        assert told(worker) == "done"
        lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert status[capabilities] == ["0" * 16], capabilities
        assert status["Uid"] == status["Gid"] == [str(confine.user_of(worker.pid))] * 4
        assert status["Groups"] == []
        assert status["NoNewPrivs"] == ["1"]
        if seccomp.is_available():
            assert status["Seccomp"] == ["2"]
        assert status["Threads"] == ["1"]
        descriptors = {os.readlink(path) for path in Path(f"/proc/{worker.pid}/fd").iterdir()}
        assert {name.partition(":")[0] for name in descriptors} == {
            "/dev/null", "socket", os.readlink(f"/proc/self/fd/{directory}")
        }  # fmt: skip
    finally:
        worker.end()


def test_who_is_ended_is_gone_when_that_returns(helper: Helper, directory: int) -> None:
    worker = confined(helper, "nothing", directory)
    assert worker.wait(0.01) is None
    assert worker.end().status == -signal.SIGKILL
    assert not Path(f"/proc/{worker.pid}").exists()
    assert worker.end().status == -signal.SIGKILL


def test_a_worker_lives_while_another_one_is_ended(helper: Helper, directory: int) -> None:
    one, other = (confined(helper, "nothing", directory) for _ in range(2))
    try:
        one.end()
        assert told(other) == "done"
        assert other.wait(0.01) is None
    finally:
        other.end()


def test_a_killed_helper_takes_its_workers_with_it_and_the_next_order_starts_another(directory: int) -> None:
    helper = Helper("tests.unit.system.deeds", ROOT)
    try:
        worker = confined(helper, "nothing", directory)
        assert told(worker) == "done"
        before = helper.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        assert told(worker) == ""  # its end of the socket is closed by its death alone
        assert worker.end() == Ended(None)
        assert outcome(helper, "nothing", directory)[0] == "done"
        assert helper.pid not in {None, before}
    finally:
        helper.close()


def test_a_helper_without_work_ends_and_the_next_order_starts_another(directory: int) -> None:
    """But not while a worker of it lives."""
    helper = Helper("tests.unit.system.deeds", ROOT, idle_seconds=1)
    try:
        worker = confined(helper, "nothing", directory)
        before = helper.pid
        assert before is not None
        assert worker.wait(2) is None
        assert told(worker) == "done"
        assert worker.end().status == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while helper.pid is not None:
            assert time.monotonic() < deadline, "the helper stays"
            time.sleep(0.01)
        assert not Path(f"/proc/{before}").exists()  # nor a zombie, though nobody has ordered anything
        assert outcome(helper, "nothing", directory)[0] == "done"
        assert helper.pid not in {None, before}
    finally:
        helper.close()


def test_who_finds_the_socket_closed_by_another_order_takes_the_next_helper(
    directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = Helper("tests.unit.system.deeds", ROOT)
    closed, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    closed.close()
    other.close()
    ways = [closed]
    real = helper._way
    monkeypatch.setattr(helper, "_way", lambda: ways.pop() if ways else real())
    try:
        assert outcome(helper, "nothing", directory)[0] == "done"
    finally:
        helper.close()


def test_orders_from_many_threads_get_a_worker_each(helper: Helper, directory: int) -> None:
    found: list[str] = []

    def order() -> None:
        found.append(outcome(helper, "nothing", directory)[0])

    threads = [threading.Thread(target=order) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["done"] * 12


def test_a_helper_that_can_not_begin_is_an_error_for_whoever_orders(
    directory: int, capfd: pytest.CaptureFixture[str]
) -> None:
    helper = Helper("tests.unit.system.absent", ROOT)
    try:
        with pytest.raises(ConnectionError):
            helper.start(b"nothing", [directory])
    finally:
        helper.close()
    assert "absent" in capfd.readouterr().err


def test_the_parent_may_have_ended_before_it_could_say_so(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            confine.enter(fd, deeds.LIMITS, parent=1 << 22)
        except ProcessLookupError:
            right.send(b"ended")
        finally:
            os._exit(0)
    right.close()
    os.waitpid(pid, 0)
    assert left.recv(10) == b"ended"
    left.close()


def test_what_this_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [sentence.partition(" (")[0] for sentence in confine.missing()] == [
        "a user of its own", "Landlock", "a filter of system calls"
    ]  # fmt: skip
