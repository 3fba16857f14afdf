from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelmount.config import Settings
from modelmount.registry.client import Client
from modelmount.transport.pool import Pool
from modelmount.transport.retry import Policy
from tests.fakes.wire import WireServer


@pytest.fixture
def server() -> Iterator[WireServer]:
    with WireServer() as started:
        yield started


@pytest.fixture
def make_client() -> Iterator[Callable[..., Client]]:
    """Makes clients that hardly wait between tries and are closed when the test ends; options are the pool's."""
    made: list[Client] = []

    def make(settings: Settings, **options: Any) -> Client:
        made.append(Client(settings, Pool(settings, **options), policy=Policy(first_seconds=0.01)))
        return made[-1]

    yield make
    for client in made:
        client.close()
