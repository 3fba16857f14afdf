"""Log lines: what is on them, and what can't break them."""

from __future__ import annotations

import json
import logging
import sys
import threading
from typing import Any

import pytest

from modelmount import telemetry


def record(message: str = "hello you", /, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("modelmount.pull", logging.WARNING, __file__, 1, message, (), None)
    if fields:
        made.fields = fields
    return made


def line(made: logging.LogRecord) -> dict[str, Any]:
    text = telemetry.JsonFormatter().format(made)
    assert "\n" not in text
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def failed(message: str) -> logging.LogRecord:
    made = record("it broke")
    try:
        raise RuntimeError(message)
    except RuntimeError:
        made.exc_info = sys.exc_info()
    return made


def test_a_line_says_when_how_bad_who_and_what() -> None:
    found = line(record())
    assert (found["level"], found["logger"], found["message"]) == ("warning", "modelmount.pull", "hello you")
    assert found["time"].endswith("Z")


def test_context_is_on_every_line_of_its_block_and_nests() -> None:
    with telemetry.context(volume="v", pod="a"):
        with telemetry.context(pod="b"):
            inner = line(record())
        outer = line(record())
    assert (inner["volume"], inner["pod"]) == ("v", "b")
    assert outer["pod"] == "a"
    assert "volume" not in line(record())


def test_context_stays_in_its_thread() -> None:
    found: list[dict[str, Any]] = []
    with telemetry.context(volume="v"):
        thread = threading.Thread(target=lambda: found.append(line(record())))
        thread.start()
        thread.join()
    assert "volume" not in found[0]


def test_fields_keep_their_types_and_cannot_forge_the_line() -> None:
    found = line(record("fine", bytes=5, settings={"root": "/x"}, level="debug", message="forged"))
    assert (found["bytes"], found["settings"]) == (5, {"root": "/x"})
    assert found["level"] == "warning"
    assert found["message"] == "fine"


def test_control_characters_and_surrogates_are_escaped() -> None:
    text = telemetry.JsonFormatter().format(record("a\nb\x1b[31m\udcff"))
    assert text.isascii()
    assert text.isprintable()


def test_long_values_are_cut() -> None:
    found = line(record("x" * 5000, pod="y" * 5000))
    assert len(found["message"]) == telemetry.VALUE_LIMIT + 1
    assert len(found["pod"]) == telemetry.VALUE_LIMIT + 1


def test_the_end_of_a_long_traceback_is_kept() -> None:
    found = line(failed("z" * 20000 + "the end"))
    assert found["exception"].rstrip().endswith("the end")
    assert len(found["exception"]) == telemetry.EXCEPTION_LIMIT


def test_a_person_gets_one_line_without_a_traceback() -> None:
    text = telemetry.PlainFormatter(tracebacks=False).format(failed("no luck"))
    assert text == "modelmount: warning: it broke (RuntimeError: no luck)"


def test_a_person_who_debugs_gets_the_traceback() -> None:
    text = telemetry.PlainFormatter(tracebacks=True).format(failed("no luck"))
    assert text.startswith("modelmount: warning: it broke\nTraceback")
    assert text.endswith("RuntimeError: no luck")


@pytest.fixture
def restored_logging() -> Any:
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("restored_logging")
def test_configured_logging_goes_to_stderr_and_urls_of_the_http_library_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry.configure("info", json_lines=True)
    logging.getLogger("modelmount.x").info("seen")
    logging.getLogger("modelmount.x").debug("not seen")
    logging.getLogger("urllib3.connectionpool").warning("https://cdn.example/blob?signature=secret")
    out, err = capsys.readouterr()
    assert out == ""
    (only,) = err.splitlines()
    assert json.loads(only)["message"] == "seen"
