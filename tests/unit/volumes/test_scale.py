"""What a publish does must not depend on how much else is on the node: counted, in files and directories opened."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fakes import stock
from tests.unit.volumes.conftest import MakeNode, Node

pytestmark = pytest.mark.mount

EVENTS = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.chmod", "os.utime", "glob.glob")

_counting: dict[int, Counter[str]] = {}


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event in EVENTS and (counter := _counting.get(threading.get_ident())) is not None:
        counter[event] += 1


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    sys.addaudithook(_hook)  # it can't be removed, and does nothing unless a thread counts


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """What this thread asks the file system for inside the block."""
    counter = _counting[threading.get_ident()] = Counter()
    try:
        yield counter
    finally:
        del _counting[threading.get_ident()]


def cost(node: Node, name: str) -> tuple[Counter[str], Counter[str]]:
    """Of one publish and its unpublish."""
    target, model = node.target(name), str(stock.reference(0))
    with counted() as publish:
        node.publish(target, model, volume=name)
    with counted() as unpublish:
        node.unpublish(target, volume=name)
    return publish, unpublish


def test_a_publish_opens_as_much_beside_many_models_and_volumes_as_alone(make_node: MakeNode) -> None:
    node = make_node(auth={"verification": "never"})
    assert list(stock.fill(node.store.root, range(1), 5)) == [0]
    cost(node, "first")  # what is made once
    alone = cost(node, "alone")
    assert alone[0]["open"] > 0
    assert len(list(stock.fill(node.store.root, range(1, 30), 5))) == 29
    for number in range(40):
        node.publish(node.target(f"pod-{number}"), str(stock.reference(number % 30)), volume=f"pod-{number}")
    assert cost(node, "among many") == alone
