"""What every test may rely on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """The umask of an ordinary shell: the command line, called in this process, makes its own stricter."""
    before = os.umask(0o022)
    yield
    os.umask(before)
