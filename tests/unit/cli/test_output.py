"""What commands print."""

from __future__ import annotations

import json
import time

import pytest

from modelmount.cli import output
from modelmount.errors import NotFound


def test_an_error_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    output.Output().error(NotFound("no such model; push it first"))
    assert capsys.readouterr() == ("", "modelmount: no such model; push it first\n")


def test_with_json_an_error_is_an_object_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    say = output.Output()
    say.json = True
    say.error(NotFound("no such model"))
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"reason": "NotFound", "message": "no such model"}}
    assert err == ""


def test_nothing_that_controls_a_terminal_gets_through(capsys: pytest.CaptureFixture[str]) -> None:
    say = output.Output()
    say.text("evil\x1b[2J.bin \u202egnp.exe\r")
    say.note("\x07bell")
    out, err = capsys.readouterr()
    assert out == "evil\\x1b[2J.bin \\u202egnp.exe\\r\n"
    assert err == "\\x07bell\n"


def test_letters_of_any_script_get_through(capsys: pytest.CaptureFixture[str]) -> None:
    output.Output().text("modèle 模型.safetensors")
    assert capsys.readouterr().out == "modèle 模型.safetensors\n"


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    lines = output.columns(("NAME", "SIZE"), [("a", "1.0 MB"), ("longer", "5 B")], right=frozenset({1}))
    assert lines == ["NAME      SIZE", "a       1.0 MB", "longer     5 B"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"),
        (-5, "just now"),
        (300, "5 min ago"),
        (7300, "2 h ago"),
        (90000, "25 h ago"),
        (900000, "10 days ago"),
    ],
)
def test_times_are_told_roughly(seconds: float, text: str) -> None:
    assert output.ago(time.time() - seconds - (20 if seconds > 0 else 0)) == text


def test_counts_agree_with_their_words() -> None:
    assert [output.counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
