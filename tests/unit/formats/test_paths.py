"""Names out of artifacts: what passes can be read in one way only."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.errors import BadArtifact
from modelmount.formats import paths


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("../x", id="P1-parent"),
        pytest.param("..", id="P1-only-parent"),
        pytest.param("a/..", id="P1-parent-at-the-end"),
        pytest.param("a/../../x", id="P1-parent-inside"),
        pytest.param("a/../b", id="P1-parent-that-stays-inside"),
        pytest.param("./../x", id="P1-parent-after-dot"),
        pytest.param("/abs", id="P1-absolute"),
        pytest.param("//host/share", id="P1-two-slashes"),
        pytest.param(".//abs", id="P1-absolute-after-dot"),
        pytest.param("a//b", id="P1-empty-component"),
        pytest.param("a/./b", id="P1-dot-inside"),
        pytest.param("a/.", id="P1-dot-at-the-end"),
        pytest.param("a/", id="P1-slash-at-the-end"),
        pytest.param(".", id="P1-dot"),
        pytest.param("./", id="P1-dot-slash"),
        pytest.param("", id="P1-empty"),
        pytest.param("a\0b", id="P2-nul"),
        pytest.param("a\nb", id="P2-newline"),
        pytest.param("a\x1b[2Jb", id="P2-escape"),
        pytest.param("a\x7fb", id="P2-delete"),
        pytest.param("a\x85b", id="P2-c1-control"),
        pytest.param("\u202egpj.exe", id="P2-right-to-left-override"),
        pytest.param("a\u200bb", id="P2-zero-width-space"),
        pytest.param("\ufeffa", id="P2-byte-order-mark"),
        pytest.param("a\u2028b", id="P2-line-separator"),
        pytest.param("a\ue000b", id="P2-private-use"),
        pytest.param("a\ud800b", id="P2-surrogate"),
        pytest.param("a\\b", id="backslash"),
        pytest.param("..\\x", id="backslash-parent"),
        pytest.param("x" * 256, id="P3-component-of-256-bytes"),
        pytest.param("é" * 128, id="P3-component-of-256-bytes-in-utf-8"),
        pytest.param("/".join(["a"] * 33), id="P3-33-levels"),
        pytest.param("/".join(["a"] * 2100), id="P3-2100-levels"),
        pytest.param("/".join(["é" * 100] * 6), id="P3-path-of-more-than-1024-bytes-in-utf-8"),
        pytest.param("./" * 2_000_000 + "x", id="P3-four-megabytes-of-dots"),
        pytest.param(".modelmount", id="P6-reserved"),
        pytest.param("a/.modelmount-tmp/b", id="P6-reserved-inside"),
        pytest.param(".wh.x", id="P8-whiteout"),
        pytest.param("a/.wh..wh..opq", id="P8-opaque-whiteout"),
    ],
)
def test_a_name_that_could_mislead_is_refused_in_words_that_cannot(path: str) -> None:
    with pytest.raises(BadArtifact, match="ask its publisher") as caught:
        paths.check(path)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b/c.safetensors",
        pytest.param("-rf", id="P7-option"),
        pytest.param("~root", id="P7-tilde"),
        pytest.param("%2e%2e", id="P7-url-encoding"),
        pytest.param("$(x)", id="P7-shell"),
        pytest.param("a b;c|d&e'f\"g*?", id="P7-shell-characters"),
        pytest.param("lost+found", id="P6-lost-and-found"),
        pytest.param(".ready", id="P6-hidden"),
        pytest.param("modelmount", id="P6-like-reserved"),
        "...",
        "..a",
        "a..b",
        "wh.x",
        "模型/権重.bin",
        "é",
        "e\u0301",
        "x" * 255,
        "/".join(["a"] * 32),
    ],
)
def test_an_ordinary_name_stays_as_it_is(path: str) -> None:
    assert paths.check(path) == path


@pytest.mark.parametrize(("path", "expected"), [("./a", "a"), ("././a/b", "a/b")])
def test_leading_dots_are_taken_off(path: str, expected: str) -> None:
    """P1: tar writes them."""
    assert paths.check(path) == expected


def test_parents_come_nearest_first_without_the_root() -> None:
    assert paths.parents("a/b/c") == ["a/b", "a"]
    assert paths.parents("a") == []


@pytest.mark.parametrize(
    ("files", "directories", "match"),
    [
        pytest.param(["a", "a/b"], [], "both a file and a directory named 'a'", id="P4-file-with-a-file-below"),
        pytest.param(["a"], ["a"], "both", id="P4-file-and-listed-directory"),
        pytest.param(["a"], ["a/b/c"], "both", id="P4-file-with-a-directory-below"),
        pytest.param(["é", "e\u0301"], [], "look the same", id="P5-equal-after-nfc"),
        pytest.param(["é/a", "e\u0301/b"], [], "look the same", id="P5-directories-equal-after-nfc"),
        pytest.param(["\u212b"], ["\u00c5"], "look the same", id="P5-angstrom-sign"),
    ],
)
def test_names_that_collide_are_refused(files: list[str], directories: list[str], match: str) -> None:
    with pytest.raises(BadArtifact, match=match):
        paths.collisions(files, directories)


def test_names_that_differ_in_case_are_two_files_and_a_warning() -> None:
    """P5."""
    (warning,) = paths.collisions(["README.md", "Readme.md"])
    assert "README.md" in warning
    assert "Readme.md" in warning
    assert paths.collisions(["a", "b/A"]) == ()


def test_warnings_are_few() -> None:
    names = [name for number in range(100) for name in (f"a{number}", f"A{number}")]
    assert 0 < len(paths.collisions(names)) <= 5


def test_many_names_under_one_directory_do_not_collide() -> None:
    assert paths.collisions(["a/b/c", "a/b/d", "a/e"], ["a", "a/b", "f"]) == ()


@given(st.text() | st.text("./a\\é\u0301\u202e\n", max_size=12))
def test_what_passes_is_relative_stays_inside_and_passes_again(path: str) -> None:
    try:
        checked = paths.check(path)
    except BadArtifact as e:
        assert e.message.isprintable()
        return
    assert paths.check(checked) == checked
    components = checked.split("/")
    assert not set(components) & {"", ".", ".."}
    assert len(checked.encode()) <= paths.MAX_PATH_BYTES
    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in checked)


@given(st.lists(st.text("ab/", min_size=1, max_size=5).filter(lambda name: "//" not in f"/{name}/"), unique=True))
def test_names_that_do_not_collide_can_all_be_made(names: list[str]) -> None:
    files, directories = set(names), {parent for name in names for parent in paths.parents(name)}
    try:
        paths.collisions(names)
    except BadArtifact:
        assert files & directories
        return
    assert not files & directories
