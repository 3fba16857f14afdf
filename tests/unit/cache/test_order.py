"""In which order models go: what the formula says at each step, for few looks."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest

from modelmount.cache import order
from modelmount.cache.census import Census, Model
from modelmount.cache.holds import Holds
from modelmount.cache.items import Item
from modelmount.cache.order import OVERHEAD_BYTES
from modelmount.cache.shares import Quotas, Shares

GIB = 1 << 30
HOUR = 3600.0
NOW = 1e9


def census(models: dict[str, tuple[float, str, dict[str, int]]]) -> Census:
    """Models by name: seconds since their last use, namespace, and what they name with its size."""
    found = Census()
    items: dict[str, Item] = {}
    for name, (idle, namespace, parts) in models.items():
        items |= {part: Item(part, size, 1) for part, size in parts.items()}
        found.models[name] = Model(name, NOW - idle, items=tuple(parts), has_facts=True, namespace=namespace)
    found.items = items
    found.unpacked = {name: [name] for name in items if name.startswith("unpacked/")}
    return found


def some(seed: int) -> Census:
    """Models that share this and that."""
    chance = random.Random(seed)
    kinds = [f"{kind}/{n}" for n in range(12) for kind in ("blobs/sha256", "unpacked")]
    sizes = {kind: chance.choice([4096, 1 << 20, 1 << 26, GIB, 5 * GIB]) for kind in kinds}
    namespaces = ["", "a", "b", "c"][: chance.choice([1, 2, 4])]
    return census(
        {
            f"{n:064x}": (
                chance.choice([HOUR, 2 * HOUR, chance.uniform(60, 1e6)]),
                chance.choice(namespaces),
                {kind: sizes[kind] for kind in chance.sample(kinds, chance.randrange(8))},
            )
            for n in range(24)
        }
    )


def formula(found: Census, left: Iterable[Model], model: Model) -> float:
    """The score as the documents have it, all that is left looked at anew."""
    goes = again = 0.0
    for name in model.items:
        part = found.items[name].bytes / sum(name in other.items for other in left)
        goes, again = goes + part, again + part * (2 if name.startswith("unpacked/") else 1)
    return (NOW - model.used_at) * goes / (again + OVERHEAD_BYTES)


@pytest.mark.parametrize("seed", range(40))
def test_what_goes_is_at_each_step_the_first_by_the_formula(seed: int) -> None:
    found, quotas, longest = some(seed), Quotas(None, {"b": 2 * GIB} if seed % 2 else {}), 3e5
    shares, counted = (Shares(found, Holds(), quotas) for _ in range(2))
    left = dict(found.models)
    for victim in order.victims(found, Holds(), NOW, grace_seconds=60, shares=shares, working_set_seconds=longest):
        assert victim.model is not None
        first = (
            [model for model in left.values() if NOW - model.used_at >= longest or counted.all_above(model.hex)]
            if counted.many
            else []
        )
        best = max(formula(found, left.values(), model) for model in first or left.values())
        assert victim.model in (first or left.values())
        assert victim.score == pytest.approx(best)
        assert victim.score == pytest.approx(formula(found, left.values(), victim.model))
        counted.forget(victim.model.hex)
        del left[victim.model.hex]
    assert left == {}


MODELS = 500


def shaped(shape: str) -> Census:
    """Many models, all of which share something."""
    shared = {"config": 4096, "base": 10 * GIB, "families": 4096, "equal": 10 * GIB}[shape]
    found: dict[str, tuple[float, str, dict[str, int]]] = {}
    for n in range(MODELS):
        parts = {"blobs/sha256/shared": shared, f"blobs/sha256/{n}": 4096 if shape == "equal" else (n * 7 % 97) << 24}
        if shape == "families":
            parts[f"blobs/sha256/family-{n // 5}"] = 5 * GIB
        found[f"{n:064x}"] = (
            HOUR + 60 * n if shape == "equal" else HOUR + n * 7919 % MODELS * HOUR,
            f"{n % 10}",
            parts,
        )
    return census(found)


@pytest.mark.parametrize("shape", ["config", "base", "families", "equal"])
def test_models_that_share_with_all_others_are_ordered_with_few_looks_at_each(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that goes changes the score of all; each asked again each time would be 125,000 looks."""
    looks = 0
    real = order._Order._score

    def counted(self: order._Order, hex_digits: str, *, at_best: bool = False) -> float:
        nonlocal looks
        looks += 1
        return real(self, hex_digits, at_best=at_best)

    monkeypatch.setattr(order._Order, "_score", counted)
    found = shaped(shape)
    victims = list(order.victims(found, Holds(), NOW, grace_seconds=60, working_set_seconds=math.inf))
    assert len(victims) == MODELS
    assert looks <= 50 * MODELS
