"""Patterns mean what they mean to git, which is asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmount.formats.patterns import MAX_PATTERN_CHARACTERS, Patterns

PATHS = (
    "a.bin",
    "b.safetensors",
    "sub/a.bin",
    "sub/deep/a.bin",
    "sub/deep/b.json",
    "original/consolidated.00.pth",
    "x/original/params.json",
    "original.txt",
    "foo[1].txt",
    "foo1.txt",
    "#hash",
    "!bang",
    "onnx/model.onnx",
    "a b",
    "é/ü.bin",
    "A.BIN",
    ".hidden/a.bin",
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("git")
    subprocess.run(["git", "init", "-q", directory], check=True)
    for path in PATHS:
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return directory


def git_ignores(repository: Path, patterns: list[str]) -> set[str]:
    (repository / ".git/info/exclude").write_text("\n".join(patterns) + "\n")
    command = ["git", "-c", "core.excludesFile=/dev/null", "-C", str(repository), "check-ignore", "-z", "--stdin"]
    found = subprocess.run(command, input="\0".join(PATHS).encode(), capture_output=True, check=False)
    assert found.returncode in {0, 1}, found.stderr
    return {path for path in found.stdout.decode().split("\0") if path}


def matched(patterns: list[str]) -> set[str]:
    found = Patterns(patterns)
    return {path for path in PATHS if found.matches(path)}


@pytest.mark.parametrize(
    "patterns",
    [
        ["*.bin"],
        ["/*.bin"],
        ["sub/*.bin"],
        ["/sub/*.bin"],
        ["sub/**/*.bin"],
        ["**/deep/*.json"],
        ["sub/**"],
        ["**"],
        ["*"],
        ["/*"],
        ["original/"],
        ["/original/"],
        ["original"],
        ["deep"],
        ["deep/"],
        ["a.bin/"],
        ["sub/deep"],
        ["**/original"],
        ["foo[[]1].txt"],
        [r"foo\[1\].txt"],
        ["foo[0-9].txt"],
        ["foo[!0-9].txt"],
        ["foo?1?.txt"],
        [r"\#hash", "# a comment", "", r"\!bang"],
        ["*.bin", "!sub/a.bin"],
        ["*", "!*.bin"],
        ["/*", "!/sub", "/sub/*", "!/sub/deep"],
        ["sub/", "!sub/a.bin"],
        ["*.BIN"],
        ["a b"],
        ["a b   "],
        ["é/*"],
        [".*"],
        ["*a*i*n*"],
        ["s**b/a.bin"],
    ],
    ids=" ".join,
)
def test_a_list_means_what_it_means_to_git(repository: Path, patterns: list[str]) -> None:
    assert matched(patterns) == git_ignores(repository, patterns)


PIECES = st.sampled_from(["*", "**", "/", "a", "sub", "deep", "original", ".bin", "?", "!", "[ab]", "[!a]", ".", "b"])


@settings(max_examples=60)
@given(st.lists(st.lists(PIECES, min_size=1, max_size=5).map("".join), min_size=1, max_size=3))
def test_whatever_is_accepted_means_the_same_to_git(repository: Path, patterns: list[str]) -> None:
    try:
        found = matched(patterns)
    except ValueError:
        return
    # To git one letter is several characters, to us one.
    assert {path for path in found if path.isascii()} == {p for p in git_ignores(repository, patterns) if p.isascii()}


@pytest.mark.parametrize(
    "pattern",
    ["/", "!", "!/", "a//b", "a//", "//", "***/a", "../x", "a/./b", "./a", "a\\", "x" * (MAX_PATTERN_CHARACTERS + 1)],
)
def test_what_can_mean_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Patterns([pattern])


def test_r12_no_pattern_takes_long() -> None:
    """Backtracking would take longer than the universe is old."""
    assert not Patterns(["*a" * 100 + "b"]).matches("a" * 250)
    assert not Patterns(["**/" * 40 + "b"]).matches("/".join("a" * 30))
    assert not Patterns(["[a-z]*" * 40 + "B"]).matches("a" * 250)


def test_components_are_counted_for_who_bounds_what_choosing_may_take() -> None:
    assert Patterns([]).components == 0
    assert Patterns(["*.bin", "/a/**/b", "!c/"]).components == 2 + 3 + 2


def test_no_patterns_match_nothing() -> None:
    assert not Patterns([])
    assert not Patterns(["", "# only a comment"]).matches("a")
