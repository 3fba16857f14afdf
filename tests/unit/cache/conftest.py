"""What the tests of this room share: a store and what fills it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelmount.content.store import Store

from .shelf import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(Store(tmp_path / "store"))
