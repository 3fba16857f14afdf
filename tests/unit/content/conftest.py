"""What the tests of this room share: a store on the test's own directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelmount.content.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
