from __future__ import annotations

import errno
import importlib
import pkgutil

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelmount
from modelmount import errors
from modelmount.service import status

NOT_FINAL = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNAVAILABLE,
}


def every_error() -> list[type[errors.ModelMountError]]:
    """All classes below ModelMountError, those of every module included."""
    for module in pkgutil.walk_packages(modelmount.__path__, "modelmount."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[errors.ModelMountError]] = []
    waiting = [errors.ModelMountError]
    while waiting:
        children = waiting.pop().__subclasses__()
        found += children
        waiting += children
    return found


def test_every_error_of_the_package_has_a_code_that_its_class_or_an_ancestor_names() -> None:
    for error in every_error():
        assert any(ancestor in status.CODES for ancestor in error.__mro__), error


def test_every_class_of_the_error_module_is_named_itself() -> None:
    own = {cls for cls in vars(errors).values() if isinstance(cls, type) and cls is not errors.ModelMountError}
    assert {cls for cls in own if issubclass(cls, errors.ModelMountError)} <= set(status.CODES)


def test_what_can_be_retried_is_never_final_for_the_kubelet_and_a_verdict_always_is() -> None:
    for error, code in status.CODES.items():
        assert error.retryable == (code in NOT_FINAL), error


def test_an_error_defined_elsewhere_has_the_code_of_its_nearest_ancestor() -> None:
    class Special(errors.NoSpace):
        pass

    assert status.of(Special("full")).code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "error", [ValueError("password hunter2"), errors.ModelMountError("password hunter2"), MemoryError()]
)
def test_an_unexpected_error_is_internal_and_its_text_stays_inside(error: Exception) -> None:
    answer = status.of(error)
    assert answer.code is grpc.StatusCode.INTERNAL
    assert "hunter2" not in answer.message
    assert answer.error_id
    assert answer.error_id in answer.message


def test_no_per_cent_sign_gets_out_for_the_kubelet_takes_it_for_a_format() -> None:
    said = status.of(errors.Pending("pulling a: 43 % (1 of 2 GB), models stay 5% clear, from https://r/a%2Fb")).message
    assert said == "pulling a: 43 percent (1 of 2 GB), models stay 5 percent clear, from https://r/a percent2Fb"


def test_two_unexpected_errors_have_different_ids() -> None:
    assert status.of(ValueError()).error_id != status.of(ValueError()).error_id


def test_a_message_of_2000_characters_is_cut_to_1_kib() -> None:
    message = status.of(errors.NotFound("é" * 2000)).message
    assert 1020 <= len(message.encode()) <= errors.MESSAGE_BYTES
    assert message.endswith("é…")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\r\n", "two\\nlines\\r\\n"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("nul\0", "nul\\x00"),
        ("c1 \x9b31m", "c1 \\x9b31m"),
        ("line \u2028 separator", "line \\u2028 separator"),
        ("right to left \u202e", "right to left \\u202e"),
        ("43\u00a0% of modèle", "43\u00a0% of modèle"),
    ],
)
def test_control_characters_in_a_message_are_escaped(text: str, shown: str) -> None:
    assert errors.printable(text) == shown


@given(st.text(), st.integers(16, 64))
def test_a_message_is_always_one_printable_line_within_its_limit(text: str, limit: int) -> None:
    shown = errors.printable(text, limit)
    assert len(shown.encode()) <= limit
    assert "\n" not in shown
    assert all(c.isprintable() or c.isspace() for c in shown)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_space_wherever_it_shows(number: int) -> None:
    answer = status.of(OSError(number, "full", "/secret/path"))
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "no space left" in answer.message
    assert "secret" not in answer.message
