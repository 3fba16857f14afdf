"""What registries say when they refuse, made fit to be shown to a person."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.oci import errcode
from modelmount.oci.errcode import Diagnostic


def test_the_errors_of_a_registry() -> None:
    body = {
        "errors": [
            {"code": "MANIFEST_UNKNOWN", "message": "manifest unknown", "detail": {"Tag": "v9"}},
            {"code": "denied", "message": "requested access to the resource is denied"},
        ]
    }
    assert errcode.parse(json.dumps(body).encode()) == (
        Diagnostic("MANIFEST_UNKNOWN", "manifest unknown"),
        Diagnostic("DENIED", "requested access to the resource is denied"),
    )


@pytest.mark.parametrize("word", ["a://", "eyJ-", "\\u0000", "é "])
def test_a_long_message_is_no_work(word: str) -> None:
    """What looks for addresses and tokens in all of it would stop everything else for seconds."""
    message = word * (errcode.MAX_BODY_BYTES // 8)
    (found,) = errcode.parse(json.dumps({"errors": [{"message": f"x{message}"}]}).encode()[: errcode.MAX_BODY_BYTES])
    assert found.message.startswith("x")
    assert len(found.message) <= errcode.MAX_MESSAGE_CHARACTERS + 1


def test_the_error_of_a_token_server() -> None:
    body = b'{"error": "invalid_grant", "error_description": "wrong password"}'
    assert errcode.parse(body) == (Diagnostic("INVALID_GRANT", "wrong password"),)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": "UNKNOWN"}, Diagnostic("UNKNOWN", "")),
        ({"message": "no space"}, Diagnostic("", "no space")),
        ({"code": 404, "message": "gone"}, Diagnostic("", "gone")),
        ({"code": "two words", "message": "gone"}, Diagnostic("", "gone")),
        ({"code": "DENIED", "message": ["x"]}, Diagnostic("DENIED", "")),
    ],
)
def test_what_is_usable_of_an_odd_error_is_kept(error: object, expected: Diagnostic) -> None:
    assert errcode.parse(json.dumps({"errors": [error]}).encode()) == (expected,)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>502 Bad Gateway</html>",
        b"[]",
        b'"denied"',
        b"null",
        b"{}",
        b'{"errors": null}',
        b'{"errors": {"code": "DENIED"}}',
        b'{"errors": ["DENIED", null, 3, {}]}',
        b'{"error": 5}',
        b"\xff\xfe{}",
        b"[" * 50_000,
        b'{"errors": [{"code": "DENIED"}]',
    ],
)
def test_a_body_that_is_no_error_says_nothing(body: bytes) -> None:
    assert errcode.parse(body) == ()


def test_the_detail_is_left_out() -> None:
    body = json.dumps({"errors": [{"code": "DENIED", "message": "no", "detail": "Bearer secret"}]}).encode()
    assert "secret" not in repr(errcode.parse(body))


def test_a_message_becomes_one_printable_line_of_bounded_length() -> None:
    message = "denied\r\nlevel=error forged=\x1b[31mline\u202e" + "x" * 10_000
    (found,) = errcode.parse(json.dumps({"errors": [{"message": message}]}).encode())
    assert found.message.startswith("denied level=error forged= [31mline x")
    assert found.message.isprintable()
    assert len(found.message) <= errcode.MAX_MESSAGE_CHARACTERS + 1


def test_signatures_of_addresses_and_tokens_stay_out() -> None:
    message = (
        "GET https://s3.example.com/b?X-Amz-Signature=abc failed for eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.ab-c, see ?"
    )
    (found,) = errcode.parse(json.dumps({"errors": [{"message": message}]}).encode())
    assert found.message == "GET https://s3.example.com/b?… failed for …, see ?"


def test_the_number_of_errors_and_the_body_are_bounded() -> None:
    assert len(errcode.parse(json.dumps({"errors": [{"code": "A"}] * 100}).encode())) == errcode.MAX_DIAGNOSTICS
    large = json.dumps({"errors": [{"code": "A", "detail": "x" * errcode.MAX_BODY_BYTES}]}).encode()
    assert errcode.parse(large) == ()


def test_a_diagnostic_reads_as_part_of_a_sentence() -> None:
    assert str(Diagnostic("DENIED", "no access")) == "DENIED: no access"
    assert str(Diagnostic("DENIED", "")) == "DENIED"
    assert str(Diagnostic("", "no access")) == "no access"


VALUES = st.none() | st.integers() | st.text(max_size=20) | st.lists(st.none(), max_size=1)
ERRORS = st.lists(st.dictionaries(st.sampled_from(["code", "message", "detail"]), VALUES) | VALUES, max_size=4)


@given(st.binary() | st.one_of(ERRORS, VALUES).map(lambda value: json.dumps({"errors": value}).encode()))
def test_no_body_raises_and_nothing_unprintable_comes_out(body: bytes) -> None:
    for found in errcode.parse(body):
        assert str(found)
        assert str(found).isprintable()
