"""Whose the cache is, by namespace. Pure: counts over a census and holds that others read.

A model is of the namespaces that hold it, by a lease or a live pull; where none does, of the one that used it last.
What nobody named a namespace for, such as pulls by hand, is the node's own, with an empty name.

However many models of a namespace name an item, it counts once. Against a quota it counts in full, whoever else has it:
nobody's quota tells what others have. Where shares are compared it counts in equal parts for the namespaces that have
it, so that the parts of all make the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelmount.cache.census import Census
from modelmount.cache.holds import Holds
from modelmount.config import Cache


@dataclass(frozen=True, slots=True)
class Quotas:
    """The admin's quotas: most bytes by namespace, and for all others. The node's own has none."""

    default: int | None = None
    by_name: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Cache) -> Quotas:
        """Those of the configuration."""
        return cls(settings.namespace_bytes, settings.namespaces)

    def quota(self, namespace: str) -> int | None:
        """Most that its models may take; None without a bound."""
        return self.by_name.get(namespace, self.default) if namespace else None


@dataclass(slots=True)
class _Common:
    """What the same models name, and how many of those each namespace has."""

    bytes: int
    owners: Counter[str]


class Shares:
    """What each namespace has here, and what would be left to it as models go. For one thread."""

    def __init__(self, census: Census, holds: Holds, quotas: Quotas) -> None:
        """Counts now."""
        self._census, self._quotas = census, quotas
        self._owners = {model.hex: _owners(model.hex, model.namespace, holds) for model in census.models.values()}
        self._groups: dict[str, list[_Common]] = {}
        self.charged: dict[str, int] = {}
        """Bytes by namespace, as they count against its quota."""
        self.parts: dict[str, float] = {}
        """Bytes by namespace; of what several have its part."""
        for group in census.groups():
            common = _Common(group.bytes, Counter(owner for user in group.users for owner in self._owners[user]))
            for hex_digits in group.users:
                self._groups.setdefault(hex_digits, []).append(common)
            self._count(common, 1)
        self._equal = sum(self.parts.values()) / max(1, len(self.parts))

    @property
    def many(self) -> bool:
        """Whether several namespaces have something here."""
        return len(self.parts) > 1

    def owners(self, hex_digits: str) -> frozenset[str]:
        """Whose a model is; never empty."""
        return self._owners[hex_digits]

    def items_of(self, namespace: str) -> set[str]:
        """The items that its models name."""
        census = self._census
        models = (census.models[hex_digits] for hex_digits, owners in self._owners.items() if namespace in owners)
        return set[str]().union(*(census.names_of(model) for model in models))

    def is_above(self, namespace: str) -> bool:
        """Whether it has more than its share: its quota; without one an equal part of all."""
        quota = self._quotas.quota(namespace)
        if quota is not None:
            return self.charged.get(namespace, 0) > quota
        return self.parts.get(namespace, 0.0) > self._equal + 1

    def all_above(self, hex_digits: str) -> bool:
        """Whether every namespace that has the model is above its share."""
        return all(self.is_above(owner) for owner in self._owners[hex_digits])

    def forget(self, hex_digits: str) -> set[str]:
        """The model goes. Returns the namespaces whose parts grew by that: they have alone now what its had, too."""
        grew = set[str]()
        for common in self._groups.pop(hex_digits, ()):
            owners = self._owners[hex_digits]
            if all(common.owners[owner] > 1 for owner in owners):
                common.owners.subtract(owners)
                continue
            self._count(common, -1)
            common.owners = common.owners - Counter(owners)
            self._count(common, 1)
            grew |= common.owners.keys()
        return grew

    def _count(self, common: _Common, sign: int) -> None:
        for owner in common.owners:
            self.charged[owner] = self.charged.get(owner, 0) + sign * common.bytes
            self.parts[owner] = self.parts.get(owner, 0.0) + sign * common.bytes / len(common.owners)


def _owners(hex_digits: str, used_by: str, holds: Holds) -> frozenset[str]:
    return frozenset(holds.namespaces.get(hex_digits, ())) or frozenset({used_by})
