from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelmount.config import Settings
from modelmount.transport.pool import Pool
from tests.fakes.wire import WireServer


@pytest.fixture
def server() -> Iterator[WireServer]:
    with WireServer() as started:
        yield started


@pytest.fixture
def make_pool() -> Iterator[Callable[..., Pool]]:
    """Makes pools that are closed when the test ends."""
    made: list[Pool] = []

    def make(settings: Settings, **options: Any) -> Pool:
        made.append(Pool(settings, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
