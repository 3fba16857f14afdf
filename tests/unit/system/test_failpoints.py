"""Failpoints do what their text says, visit by visit, and cost nothing when unset."""

from __future__ import annotations

import errno
import signal
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.system import failpoints
from modelmount.system.failpoints import Failpoints, armed, failpoint

from .processes import start, stop

VISIT_THRICE = """
from modelmount.system.atomic import failpoint
for n in range(3):
    failpoint("a.b")
    print(n, flush=True)
"""


def outcome(text: str) -> tuple[list[str], int]:
    process = start(VISIT_THRICE, env={failpoints.ENVIRONMENT_VARIABLE: text})
    try:
        output, _ = process.communicate(timeout=60)
        return output.split(), process.returncode
    finally:
        stop(process)


def test_a_process_dies_by_signal_at_the_third_visit() -> None:
    assert outcome("a.b=2*off->kill") == (["0", "1"], -signal.SIGKILL)


def test_a_process_exits_at_once_with_the_status_given() -> None:
    assert outcome("other=kill;a.b=exit(137)") == ([], 137)


def test_nothing_happens_when_unset() -> None:
    assert outcome("") == (["0", "1", "2"], 0)


def test_a_wrong_text_stops_the_process_at_its_start() -> None:
    assert outcome("a.b=explode")[1] == 1


@given(before=st.integers(0, 20), times=st.integers(1, 20), after=st.integers(0, 5))
def test_terms_take_turns_by_their_counts(before: int, times: int, after: int) -> None:
    points = Failpoints(f"x={before}*off->{times}*error(ENOSPC)")
    seen: list[int | None] = []
    for _ in range(before + times + after):
        try:
            points.visit("x")
        except OSError as e:
            seen.append(e.errno)
        else:
            seen.append(None)
    assert seen == [None] * before + [errno.ENOSPC] * times + [None] * after


def test_a_term_without_a_count_stays() -> None:
    points = Failpoints("x=1*delay(0)->error(EIO)->off")
    points.visit("x")
    for _ in range(5):
        with pytest.raises(OSError, match=r"failpoint x"):
            points.visit("x")


def test_names_have_counts_of_their_own() -> None:
    points = Failpoints("x=1*off->error(EIO); y=error(EROFS)")
    points.visit("x")
    points.visit("unknown")
    with pytest.raises(OSError) as caught:
        points.visit("y")
    assert caught.value.errno == errno.EROFS


def test_threads_share_one_count() -> None:
    points = Failpoints("x=1000*off->3*error(EIO)")
    failed: list[int] = []

    def visit_many() -> None:
        for _ in range(300):
            try:
                points.visit("x")
            except OSError:
                failed.append(1)

    threads = [threading.Thread(target=visit_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 3


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "=off",
        "x=",
        "x=off->",
        "x=exit",
        "x=exit()",
        "x=exit(ENOSPC)",
        "x=off(1)",
        "x=kill(9)",
        "x=error(5)",
        "x=error(ENOSUCHTHING)",
        "x=delay(-1)",
        "x=*off",
        "x=1%off",
        "x y=off",
        "x=٣*off",
    ],
)
def test_a_wrong_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=failpoints.ENVIRONMENT_VARIABLE):
        Failpoints(text)


def test_armed_puts_the_former_set_back() -> None:
    with armed("x=error(EIO)"):
        with armed("x=off"):
            failpoint("x")
        with pytest.raises(OSError, match="failpoint x"):
            failpoint("x")
    failpoint("x")
