"""Programs that answer, dawdle, babble, or leave children behind."""

import os
import sys
import time
from pathlib import Path

import pytest

from modelmount.system import programs
from modelmount.system.programs import Output, ProgramError

SECONDS = 30.0


def script(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def run(path: Path, *arguments: str, question: bytes = b"", seconds: float = SECONDS, most: int = 1 << 20) -> Output:
    return programs.run(path, arguments, question, seconds=seconds, most_bytes=most)


def test_a_question_gets_its_answer(tmp_path: Path) -> None:
    program = script(tmp_path / "p", 'printf "%s " "$@"; cat; exit 3')
    assert run(program, "a", "b c", question=b"why?") == Output(3, b"a b c why?")


def test_large_questions_and_answers_pass_each_other(tmp_path: Path) -> None:
    data = os.urandom(700_000)
    assert run(script(tmp_path / "p", "cat"), question=data) == Output(0, data)


def test_a_program_need_not_read_its_question(tmp_path: Path) -> None:
    assert run(script(tmp_path / "p", "exec 0<&-; echo done"), question=bytes(1 << 20)).text == b"done\n"


def test_our_own_settings_stay_with_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMOUNT_ROOT", "/x")
    monkeypatch.setenv("CSI_ENDPOINT", "unix:///x")
    monkeypatch.setenv("AWS_REGION", "eu")
    program = script(tmp_path / "p", "env")
    output = programs.run(program, [], b"", seconds=SECONDS, most_bytes=1 << 20, environment={"MORE": "1"})
    names = {line.partition(b"=")[0] for line in output.text.splitlines()}
    assert {b"AWS_REGION", b"MORE"} <= names
    assert not names & {b"MODELMOUNT_ROOT", b"CSI_ENDPOINT"}


def test_what_it_says_beside_its_answer_is_dropped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(script(tmp_path / "p", "echo hunter2 >&2")).text == b""
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("text", ["sleep 600", "exec 1>&-; sleep 600", "sleep 600 & echo early"])
def test_one_that_does_not_end_is_killed_with_its_children(tmp_path: Path, text: str) -> None:
    program = script(tmp_path / "p", f"echo $$ > {tmp_path}/pid; {text}")
    with pytest.raises(ProgramError, match=r"didn't end within 2 s"):
        run(program, seconds=2.0)
    deadline = time.monotonic() + SECONDS
    while (tmp_path / "pid").exists() and _runs(int((tmp_path / "pid").read_text() or -1)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(group: int) -> bool:
    """Whether a process of this group is left that isn't dead already."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def test_one_that_babbles_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="wrote more than 4096 bytes"):
        run(script(tmp_path / "p", "cat /dev/zero"), most=4096)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "is not a program"),
        (lambda path: script(path, "true", 0o644), "is not a program"),
        (lambda path: script(path, "true", 0o775), "may be changed by others"),
        (lambda path: (path.write_text("garbage"), path.chmod(0o755)), "can't be started"),
    ],
)
def test_what_is_no_program_of_its_owner_is_not_started(tmp_path: Path, make: object, problem: str) -> None:
    assert callable(make)
    make(tmp_path / "p")
    with pytest.raises(ProgramError, match=problem):
        run(tmp_path / "p")


def test_nothing_of_an_answer_shows_in_a_repr(tmp_path: Path) -> None:
    program = tmp_path / "p"
    program.write_text(f"#!{sys.executable}\nprint('hunter2')\n")
    program.chmod(0o755)
    assert "hunter2" not in repr(run(program))


def test_children_of_one_that_ended_well_end_too(tmp_path: Path) -> None:
    program = script(tmp_path / "p", f"echo $$ > {tmp_path}/pid; sleep 600 >/dev/null & echo done")
    assert run(program) == Output(0, b"done\n")
    group = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + SECONDS
    while _runs(group):
        assert time.monotonic() < deadline
        time.sleep(0.01)
