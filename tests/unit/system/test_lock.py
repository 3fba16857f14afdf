"""Locks exclude, wait, are given up at death, and let the sweeper in. Orders and counts are asserted, never times."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from modelmount.system.lock import ByteLocks, Counts, FileLock, Held, LockCancelled, LockTimeout, StoreLock

from .processes import line, start, stop

HOLD = """
import sys
from pathlib import Path
from modelmount.system.lock import FileLock
held = FileLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
"""
WAIT = HOLD + "sys.stdin.read()"
HOLD_WITH_PROGRAM = (
    HOLD
    + """
import subprocess
program = subprocess.Popen(["sleep", "600"], close_fds=False)
print(program.pid, flush=True)
sys.stdin.read()
"""
)
FORK_AND_RELEASE = (
    HOLD
    + """
import os
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
held.release()
print(child, flush=True)
sys.stdin.read()
"""
)
CHILD_RELEASES = (
    HOLD
    + """
import os
child = os.fork()
if child == 0:
    held.release()
    os._exit(0)
os.waitpid(child, 0)
print("child gone", flush=True)
sys.stdin.read()
"""
)

SAY = """
import sys
from modelmount.system.lock import Counts
counts = Counts(sys.argv[1])
counts.say("a", 5)
print("said", flush=True)
sys.stdin.read()
"""


def is_free(path: Path) -> bool:
    try:
        FileLock(path).acquire(timeout=0).release()
    except LockTimeout:
        return False
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ingest-x"


def test_two_acquires_of_one_process_exclude_each_other(path: Path) -> None:
    shared_object = FileLock(path)
    with shared_object.acquire():
        with pytest.raises(LockTimeout, match="ingest-x"):
            shared_object.acquire(timeout=0)
        assert not is_free(path)
    assert is_free(path)


def test_threads_never_meet_inside(path: Path) -> None:
    file_lock, inside, meetings, entries = FileLock(path), [0], [], []

    def work() -> None:
        for _ in range(50):
            with file_lock.acquire():
                inside[0] += 1
                meetings.append(inside[0])
                inside[0] -= 1
            entries.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entries) == 200
    assert set(meetings) == {1}


def test_shared_holders_share_and_keep_an_exclusive_one_out(path: Path) -> None:
    with FileLock(path).acquire(shared=True), FileLock(path).acquire(shared=True, timeout=0):
        assert not is_free(path)
    with FileLock(path).acquire(), pytest.raises(LockTimeout):
        FileLock(path).acquire(shared=True, timeout=0)


def test_the_file_is_private_and_closed_on_exec(path: Path) -> None:
    with FileLock(path).acquire() as held:
        assert path.stat().st_mode & 0o777 == 0o600
        assert not os.get_inheritable(held._fd)


def test_a_lock_is_not_taken_through_a_symbolic_link(path: Path) -> None:
    path.symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        FileLock(path).acquire()
    assert not (path.parent / "elsewhere").exists()


def test_releasing_twice_does_not_touch_a_stranger_s_descriptor(path: Path) -> None:
    held = FileLock(path).acquire()
    held.release()
    with path.open() as stranger:
        held.release()
        stranger.read()


def test_waits_grow_from_one_to_25_milliseconds_and_the_waiter_gets_in(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, delays = FileLock(path).acquire(), []

    def sleep(seconds: float) -> None:
        delays.append(seconds)
        if len(delays) == 8:
            holder.release()

    monkeypatch.setattr(time, "sleep", sleep)
    FileLock(path).acquire().release()
    assert delays == [0.001, 0.002, 0.004, 0.008, 0.016, 0.025, 0.025, 0.025]


def test_a_wait_never_sleeps_past_its_deadline(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, delays = [100.0], []

    def sleep(seconds: float) -> None:
        delays.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with FileLock(path).acquire(), pytest.raises(LockTimeout):
        FileLock(path).acquire(timeout=0.005)
    assert sum(delays) == pytest.approx(0.005)


def test_a_wait_can_be_cancelled(path: Path) -> None:
    answers = iter([False, False, True])
    with FileLock(path).acquire(), pytest.raises(LockCancelled):
        FileLock(path).acquire(cancelled=lambda: next(answers))
    assert list(answers) == []


def test_a_cancelled_caller_does_not_get_a_free_lock(path: Path) -> None:
    with pytest.raises(LockCancelled):
        FileLock(path).acquire(cancelled=lambda: True)


def test_a_waiter_takes_the_new_file_when_the_old_one_was_unlinked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = FileLock(path).acquire()
    old = path.stat().st_ino
    keep_inode_number = path.open()  # so that the new file can't get the same one
    monkeypatch.setattr(time, "sleep", lambda _: first.release(unlink=True))
    with FileLock(path).acquire():
        assert path.stat().st_ino != old
        assert not is_free_to_others(path)
    keep_inode_number.close()


def is_free_to_others(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_unlinked_between_open_and_lock_is_opened_anew(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replaced: bool,
) -> None:
    flock = fcntl.flock
    calls: list[int] = []

    def unlink_first(fd: int, operation: int) -> None:
        if not calls:
            path.unlink()
            if replaced:
                path.touch()
        calls.append(operation)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", unlink_first)
    held = FileLock(path).acquire(timeout=0)
    assert len(calls) == 2
    assert os.fstat(held._fd).st_ino == path.stat().st_ino
    held.release()


def test_the_file_is_unlinked_only_on_demand_and_only_by_an_exclusive_holder(path: Path) -> None:
    FileLock(path).acquire().release()
    assert path.exists()
    with FileLock(path).acquire(shared=True) as held:
        with pytest.raises(ValueError, match="shared"):
            held.release(unlink=True)
        assert not is_free(path)
    FileLock(path).acquire().release(unlink=True)
    assert not path.exists()


def test_a_lock_that_others_unlink_all_the_time_still_excludes(path: Path) -> None:
    inside, meetings = [0], []

    def work() -> None:
        for _ in range(50):
            held = FileLock(path).acquire()
            inside[0] += 1
            meetings.append(inside[0])
            inside[0] -= 1
            held.release(unlink=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meetings == [1] * 200
    assert not path.exists()


def test_processes_exclude_each_other_and_a_killed_one_holds_nothing(path: Path) -> None:
    process = start(WAIT, str(path))
    try:
        assert line(process) == "held"
        assert not is_free(path)
        process.kill()
        process.wait(timeout=60)
        assert is_free(path)
    finally:
        stop(process)


def test_a_program_started_by_the_holder_does_not_keep_the_lock(path: Path) -> None:
    process, program = start(HOLD_WITH_PROGRAM, str(path)), 0
    try:
        assert line(process) == "held"
        program = int(line(process))
        process.kill()
        process.wait(timeout=60)
        os.kill(program, 0)  # it lives
        assert is_free(path)
    finally:
        if program:
            os.kill(program, signal.SIGKILL)
        stop(process)


def test_a_forked_child_does_not_keep_a_released_lock(path: Path) -> None:
    process, child = start(FORK_AND_RELEASE, str(path)), 0
    try:
        assert line(process) == "held"
        child = int(line(process))
        os.kill(child, 0)  # it lives, with a copy of the descriptor
        assert is_free(path)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
        stop(process)


def test_a_forked_child_s_release_leaves_the_parent_s_lock_alone(path: Path) -> None:
    process = start(CHILD_RELEASES, str(path))
    try:
        assert [line(process), line(process)] == ["held", "child gone"]
        assert not is_free(path)
    finally:
        stop(process)


def test_overlapping_readers_starve_a_writer_of_a_plain_lock(path: Path) -> None:
    """The trap itself: if this fails, the turnstile is no longer needed."""
    tries: list[int] = []
    progress = threading.Semaphore(0)

    def still_trying() -> bool:
        tries.append(1)
        progress.release()
        return False

    entered = threading.Event()

    def write() -> None:
        with FileLock(path).acquire(cancelled=still_trying):
            entered.set()

    first = FileLock(path).acquire(shared=True)
    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(2):
        progress.acquire()

    def take() -> Held:
        progress.acquire()  # the writer has had another try since the last reader came
        return FileLock(path).acquire(shared=True, timeout=0)

    holder = take()
    first.release()
    for _ in range(20):
        following = take()
        holder.release()
        holder = following
    assert not entered.is_set()
    holder.release()
    writer.join()
    assert entered.is_set()


def queue_writer(store: StoreLock, directory: Path) -> tuple[threading.Thread, threading.Event, threading.Event]:
    """A thread that waits for the exclusive lock while readers hold it, and is known to have the turnstile already."""
    entered, leave = threading.Event(), threading.Event()

    def write() -> None:
        with store.exclusive():
            entered.set()
            leave.wait()

    writer = threading.Thread(target=write)
    writer.start()
    while is_free(directory / "store.turnstile"):
        pass
    return writer, entered, leave


def test_no_reader_passes_a_waiting_writer_of_the_store(tmp_path: Path) -> None:
    store = StoreLock(tmp_path)
    first = store.shared()
    writer, entered, leave = queue_writer(store, tmp_path)
    try:
        for _ in range(100):
            with pytest.raises(LockTimeout):
                store.shared(timeout=0)
        assert not entered.is_set()
        first.release()
        entered.wait()
        with pytest.raises(LockTimeout):
            store.shared(timeout=0)
    finally:
        first.release()
        leave.set()
        writer.join()
    store.shared(timeout=0).release()


def test_a_writer_gets_in_while_readers_overlap_for_ever(tmp_path: Path) -> None:
    store, done = StoreLock(tmp_path), threading.Event()
    shared_taken: list[int] = []
    failures: list[OSError] = []

    def read() -> None:
        try:
            held = store.shared()
            while not done.is_set() and len(shared_taken) < 200_000:
                following = None
                with contextlib.suppress(LockTimeout):
                    following = store.shared(timeout=0)
                held.release()
                held = following or store.shared()
                shared_taken.append(1)
            held.release()
        except OSError as e:
            failures.append(e)

    readers = [threading.Thread(target=read) for _ in range(6)]
    for reader in readers:
        reader.start()
    for _ in range(10):
        store.exclusive().release()
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert len(shared_taken) < 200_000


def test_a_cancelled_writer_opens_the_turnstile_again(tmp_path: Path) -> None:
    store = StoreLock(tmp_path)
    answers = iter([False, False, True])
    with store.shared():
        with pytest.raises(LockCancelled):
            store.exclusive(cancelled=lambda: next(answers))
        with pytest.raises(LockTimeout):
            store.exclusive(timeout=0)
        store.shared(timeout=0).release()


def test_store_holders_exclude_each_other(tmp_path: Path) -> None:
    store = StoreLock(tmp_path)
    with store.shared(), StoreLock(tmp_path).shared(timeout=0), pytest.raises(LockTimeout):
        store.exclusive(timeout=0)
    with store.exclusive():
        with pytest.raises(LockTimeout):
            store.exclusive(timeout=0)
        with pytest.raises(LockTimeout):
            store.shared(timeout=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "store.turnstile"]


# -- many in one file


HOLD_A_BYTE = """
import sys
from modelmount.system.lock import ByteLocks
locks = ByteLocks(sys.argv[1])
assert locks.take("one")
print("held", flush=True)
sys.stdin.read()
"""


def test_locks_in_one_file_exclude_by_name_and_end_together(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    with ByteLocks(path) as mine, ByteLocks(path) as other:
        assert mine.take("one")
        assert mine.take("two")
        assert mine.take("one")
        assert not other.take("one")
        assert other.take("three")
        assert not mine.take("three")
        mine.close()
        assert other.take("one")
        assert other.take("two")
    assert path.stat().st_size == 0


def test_a_lock_in_a_file_of_many_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    holder = start(HOLD_A_BYTE, str(path))
    try:
        assert line(holder) == "held"
        with ByteLocks(path) as locks:
            assert not locks.take("one")
            assert locks.take("two")
            holder.send_signal(signal.SIGKILL)
            locks.wait("one", lambda: False)
    finally:
        stop(holder)


def test_a_wait_for_one_of_many_can_be_cancelled(tmp_path: Path) -> None:
    path, asked = tmp_path / "locks", []
    with ByteLocks(path) as mine, ByteLocks(path) as other:
        assert mine.take("one")

        def cancelled() -> bool:
            asked.append(True)
            return len(asked) == 3

        with pytest.raises(LockCancelled):
            other.wait("one", cancelled)
        mine.close()
        other.wait("one", lambda: False)


def test_who_is_told_that_an_unlock_failed_holds_nothing_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def failing(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", failing)
    locks = StoreLock(tmp_path)
    with locks.shared():
        pass
    with locks.exclusive(timeout=0), pytest.raises(LockTimeout):
        locks.shared(timeout=0)
    locks.shared(timeout=0).release()


def test_counts_are_what_all_others_say(path: Path) -> None:
    voices = [Counts(path) for _ in range(3)]
    for turn in (1, 3, 2):  # so that what they have lies between each other's
        for n, voice in enumerate(voices):
            voice.say("a", turn + n)
            voice.say("b", n)
    assert [voice.elsewhere("a") for voice in voices] == [3 + 4, 2 + 4, 2 + 3]
    assert [voice.elsewhere("b") for voice in voices] == [1 + 2, 0 + 2, 0 + 1]
    assert voices[0].elsewhere("c") == 0
    voices[1].close()
    voices[1].close()
    assert voices[0].elsewhere("a") == 4
    voices[1].say("a", 1)
    assert voices[0].elsewhere("a") == 5
    for voice in voices:
        voice.close()


def test_what_a_process_said_ends_with_it(path: Path) -> None:
    here, there = Counts(path), start(SAY, str(path))
    try:
        assert line(there) == "said"
        assert here.elsewhere("a") == 5
    finally:
        stop(there)
    assert here.elsewhere("a") == 0
    here.close()


def test_counts_that_are_no_use_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Counts(tmp_path / "nowhere" / "counts").say("a", 1)
