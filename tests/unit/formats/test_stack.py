"""Layers on top of each other: the bounds. What they become is in the conformance suite."""

from __future__ import annotations

import pytest

from modelmount.errors import BadArtifact
from modelmount.formats import stack
from modelmount.formats.base import SYMLINK, Member
from modelmount.formats.stack import Stack


def file(ordinal: int, path: str) -> Member:
    return Member(ordinal, path, False, 1, "0" * 64)


def link(ordinal: int, path: str, target: str) -> Member:
    return Member(ordinal, path, False, 0, "", SYMLINK, target)


def test_the_entries_of_all_layers_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "MAX_ENTRIES", 5)
    found = Stack()
    found.apply([file(n, f"models/{n}") for n in range(3)], "a/1")
    found.apply([file(n, f"models/{n}") for n in range(2)], "b/1")
    assert len(found.shows()[0]) == 3
    with pytest.raises(BadArtifact, match="more than 5 entries"):
        found.apply([file(0, "models/x")], "c/1")


def test_what_links_lead_through_is_bounded_for_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty links of a thousand components each before every entry would take hours."""
    monkeypatch.setattr(stack, "MAX_STEPS", 1000)
    found = Stack()
    found.apply([file(0, "models/x"), *(link(n, f"l{n}", f"{'models/../' * 20}l{n + 1}") for n in range(9))], "a/1")
    with pytest.raises(BadArtifact, match="links lead on for more than 1000 names"):
        found.apply([file(n, f"l0/{n}/x") for n in range(9)], "b/1")
    deep = Stack()
    deep.apply([file(n, "/".join(["models"] * 30 + [str(n)])) for n in range(100)], "a/1")  # without links no bound


def test_a_file_is_found_by_its_layer_and_its_number_there() -> None:
    found = Stack()
    found.apply([file(0, "models/a"), file(1, "models/b")], "a/1")
    found.apply([file(7, "models/b"), link(8, "models/c", "b")], "b/2")
    files, _, _ = found.shows()
    assert {one.path: one.source for one in files} == {"a": "a/1/0", "b": "b/2/7", "c": "b/2/7"}


def test_directories_deeper_than_any_volume_has_are_refused_where_they_are_shown() -> None:
    found = Stack()
    found.apply([file(0, "/".join(["opt"] * 100)), file(1, "models/x")], "a/1")
    assert [one.path for one in found.shows()[0]] == ["x"]
    with pytest.raises(BadArtifact, match="levels deep"):
        found.shows("opt")
