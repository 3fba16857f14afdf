"""Exit codes: every error has one, and the help says what they mean."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import modelmount.cli  # so that every room's errors are known
from modelmount import errors
from modelmount.cli import exits


def tree(top: type[errors.ModelMountError]) -> Iterator[type[errors.ModelMountError]]:
    for each in top.__subclasses__():
        yield each
        yield from tree(each)


def test_every_error_class_of_the_package_is_in_the_table() -> None:
    own = {each for each in tree(errors.ModelMountError) if each.__module__ == "modelmount.errors"}
    assert own == exits.CODES.keys() - {errors.ModelMountError}


def test_every_leaf_of_any_room_has_a_code_that_is_no_success() -> None:
    for each in tree(errors.ModelMountError):
        assert exits.code_of(each("text")) in set(exits.Exit) - {exits.Exit.OK}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest, 2),
        (errors.NotFound, 3),
        (errors.Unauthenticated, 4),
        (errors.Forbidden, 4),
        (errors.IntegrityError, 5),
        (errors.NoSpace, 6),
        (errors.Unavailable, 7),
        (errors.Cancelled, 130),
    ],
)
def test_the_codes_are_these_for_good(error: type[errors.ModelMountError], code: int) -> None:
    assert exits.code_of(error("text")) == code


def test_every_code_has_its_meaning_in_the_help() -> None:
    assert exits.MEANINGS.keys() == set(exits.Exit)
    for code in exits.Exit:
        assert f"{code.value:>5}  {exits.MEANINGS[code]}" in exits.table()
    assert exits.table() in (modelmount.cli.cli.epilog or "")
