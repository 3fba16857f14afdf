"""What is noted about a manifest."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.content.store import Store
from modelmount.oci.digest import Digest
from modelmount.pull import verdicts

MANIFEST = Digest.of(b"a manifest")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "store")
    (found.root / "models" / MANIFEST.hex).mkdir()
    return found


@pytest.fixture
def full(store: Store) -> Iterator[Store]:
    """No file of this process may have one more byte: as on a full disk, but for the number of the error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    yield store
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_namespace_that_used_a_model_last_is_known(store: Store) -> None:
    for namespace in ("one", "two", ""):
        verdicts.mark_used(store, MANIFEST, namespace)
    assert verdicts.used_by(store, MANIFEST.hex) == "two"


def test_where_nothing_can_be_written_a_use_is_marked_all_the_same(full: Store) -> None:
    directory = full.root / "models" / MANIFEST.hex
    os.utime(directory, (0, 0))
    verdicts.mark_used(full, MANIFEST, "one")
    assert directory.stat().st_mtime > 0
    assert list(directory.iterdir()) == []
