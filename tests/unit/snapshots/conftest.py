"""What the tests of this room share: a directory to unpack into, a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelmount.content.store import Store

from .archives import Directory


@pytest.fixture
def target(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "unpacked")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
