"""A digest that exists is safe as a part of a path."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.errors import InvalidRequest
from modelmount.oci.digest import Digest

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"sha512:{HEX}{HEX}"])
def test_a_digest_is_read_and_written_the_same(text: str) -> None:
    digest = Digest.parse(text)
    assert str(digest) == text
    assert Digest.parse(str(digest)) == digest


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"sha256:{HEX[:63]}", id="R2-63-digits"),
        pytest.param(f"sha256:{HEX}0", id="R2-65-digits"),
        pytest.param(f"sha256:{HEX.upper()}", id="R2-upper-case-hex"),
        pytest.param(f"SHA256:{HEX}", id="R2-upper-case-algorithm"),
        pytest.param(f"sha1:{HEX[:40]}", id="R2-sha1"),
        pytest.param(f"md5:{HEX[:32]}", id="R2-md5"),
        pytest.param(f"sha384:{HEX}{HEX[:32]}", id="R2-sha384"),
        pytest.param(f"x+y:{HEX}", id="R2-unknown-algorithm"),
        pytest.param(f"sha512:{HEX}", id="R2-length-of-another-algorithm"),
        pytest.param(f"sha256:{HEX}\n", id="R1-newline-at-the-end"),
        pytest.param(f"sha256:{HEX[:63]}٣", id="R7-arabic-digit"),
        pytest.param(f"sha256:{HEX[:63]}５", id="R7-full-width-digit"),
        pytest.param(f"sha256:{HEX[:61]}/..", id="path"),
        pytest.param(HEX, id="no-algorithm"),
        pytest.param("sha256:", id="no-value"),
        pytest.param("sha256:abc", id="short"),
        pytest.param(":", id="colon"),
        pytest.param("", id="empty"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Digest.parse(text)


def test_a_refusal_shows_neither_control_characters_nor_a_megabyte() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Digest.parse("sha256:\x1b[2J\u202e" + "x" * (1 << 20))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


def test_a_digest_is_checked_however_it_is_made() -> None:
    with pytest.raises(InvalidRequest):
        Digest("sha256", "../../etc/passwd")
    with pytest.raises(InvalidRequest):
        Digest("../sha256", HEX)


def test_hashing_compares_with_the_value() -> None:
    assert Digest.of(b"model").hex == hashlib.sha256(b"model").hexdigest()
    long = Digest("sha512", hashlib.sha512(b"model").hexdigest())
    hasher = long.hasher()
    hasher.update(b"model")
    assert hasher.hexdigest() == long.hex


@given(st.text())
def test_text_is_a_digest_or_refused(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except InvalidRequest:
        return
    assert str(digest) == text
    assert digest.hex.isascii()
    assert digest.hex.isalnum()
