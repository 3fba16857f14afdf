"""What goes first. Pure: decides over a census and holds that others read.

    score = idle seconds x (bytes that go / bytes to fetch again)

*Bytes that go* are those of the model's content that no held model needs; of what several models share each counts its
part, so that a shared blob weighs as much as its models together and goes with the last of them. *Bytes to fetch again*
are the same bytes, those of unpacked layers twice, for the archive is fetched and then written once more, plus
`OVERHEAD_BYTES` for the requests that any pull begins with. So large raw models go by least recent use alone; small
ones, and ones that have to be unpacked, stay longer than their idle time says. The highest score goes first.

Where several namespaces have something here, two classes go one after the other, each by score: first what is nobody's
working set or is had by namespaces above their share only, as long as they are (`cache.shares`); then the rest.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal, get_args

from modelmount.cache.census import Census, Group, Model, Partial
from modelmount.cache.holds import Hold, Holds
from modelmount.cache.shares import Quotas, Shares

OVERHEAD_BYTES = 64 << 20
"""What a pull's first requests cost, as bytes: half a second at 1 Gbit/s. Also a partial download's."""
FUTURE_SECONDS = 60.0
"""A use this far ahead was written by a clock that was wrong."""
_ROUNDING = 1e-12
"""Far more than what sums of the same figures differ by, and far less than what matters."""
_REASONS: tuple[Hold, ...] = get_args(Hold)


First = Literal["", "above its share", "unused for long"]
"""Why something goes before others' working sets, where that matters."""


@dataclass(frozen=True, slots=True)
class Victim:
    """One model or one partial download that may go, and why. `frees` is what goes with it at its place in the order;
    of what it shares with models that stay, nothing. `namespaces` have it, the node's own not named.
    """

    model: Model | None
    partial: Partial | None
    idle_seconds: float
    frees: int
    frees_inodes: int
    score: float
    namespaces: tuple[str, ...] = ()
    first: First = ""

    @property
    def name(self) -> str:
        """As a person knows it."""
        if self.model is not None:
            return self.model.name
        assert self.partial is not None
        return f"partial download of {self.partial.hex[:12]}"


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is held: models with the first reason, and by reason the bytes that stay for it."""

    models: Mapping[str, Hold]
    items: Set[str]
    bytes: Mapping[Hold, int] = field(default_factory=dict)


def held_models(census: Census, holds: Holds) -> dict[str, Hold]:
    """Which models stay, whatever happens, with the first reason. A held tree holds the models that are shown by it."""
    found: dict[str, Hold] = {}
    for model in census.models.values():
        reasons = {holds.models.get(model.hex), *(holds.trees.get(tree) for tree in model.trees)} - {None}
        if reasons:
            found[model.hex] = min((r for r in reasons if r is not None), key=_REASONS.index)
    return found


def keeping(census: Census, holds: Holds, *, of: Callable[[str], bool] | None = None) -> Keeping:
    """Which models and items stay, whatever happens. With `of`, only the bytes of items for which it is true are
    counted, and no partial downloads.
    """
    models = held_models(census, holds)
    items: dict[str, Hold] = {}
    for hex_digits, reason in models.items():
        items.update(dict.fromkeys(census.names_of(census.models[hex_digits]).difference(items), reason))
    for tree, reason in holds.trees.items():
        items.update(dict.fromkeys(set(census.trees.get(tree, ())).difference(items), reason))
    if holds.digests:
        for item in census.items.values():
            if item.hex in holds.digests:
                items.setdefault(item.name, "pulled")
    found: dict[Hold, int] = {}
    for name, reason in items.items():
        if name in census.items and (of is None or of(name)):
            found[reason] = found.get(reason, 0) + census.items[name].bytes
    for partial in census.partials.values():
        if of is None and partial.name in holds.ingests:
            found["pulled"] = found.get("pulled", 0) + partial.bytes
    return Keeping(models, items.keys(), found)


def victims(
    census: Census,
    holds: Holds,
    now: float,
    *,
    grace_seconds: float,
    shares: Shares | None = None,
    working_set_seconds: float = math.inf,
    within: str | None = None,
) -> Iterator[Victim]:
    """What may go, in order, lazily; each `frees` supposes that all before it went. `shares` are used up by that. With
    `within`, only models that this namespace has alone, and `frees` is what it is relieved of.
    """
    shares = shares or Shares(census, holds, Quotas())
    return _Order(census, holds, now, grace_seconds, shares, working_set_seconds, within).run()


def partials(census: Census, holds: Holds, now: float, *, grace_seconds: float) -> Iterator[Victim]:
    """The partial downloads among them, in no order."""
    for partial in census.partials.values():
        idle = _idle(partial.written_at, now, grace_seconds)
        if partial.name not in holds.ingests and partial.hex not in holds.digests and idle >= grace_seconds:
            score = idle * partial.bytes / (partial.bytes + OVERHEAD_BYTES)
            yield Victim(None, partial, idle, partial.bytes, partial.inodes, score)


def evictable(census: Census, holds: Holds, held: Keeping, now: float, *, grace_seconds: float) -> int:
    """The bytes that go when all victims do. `held` is what `keeping` says of the same."""
    going = {
        model.hex
        for model in census.models.values()
        if model.hex not in held.models and _idle(model.used_at, now, grace_seconds) >= grace_seconds
    }
    downloads = sum(victim.frees for victim in partials(census, holds, now, grace_seconds=grace_seconds))
    return downloads + sum(group.bytes for group in census.groups(held.items) if group.users <= going)


def garbage(census: Census, now: float, *, grace_seconds: float) -> set[str]:
    """The items that no model and no tree names, but for those that were just written: their record may be on its
    way.
    """
    return {name for name, came_at in census.unnamed.items() if _idle(came_at, now, grace_seconds) >= grace_seconds}


def empty(census: Census, holds: Holds, now: float, *, grace_seconds: float) -> list[Model]:
    """Models of which nothing is left but names."""
    held = held_models(census, holds)
    return [
        model
        for model in census.models.values()
        if model.hex not in held
        and not model.items
        and not census.trees_of(model)
        and model.is_recorded
        and _idle(model.used_at, now, grace_seconds) >= grace_seconds
    ]


_Entry = tuple[bool, float, str]
"""A place in the order, the smallest first: whether it is of the later class, its score, negative, and its name."""


class _Shared:
    """Items with the same users. The best case supposes `fewest` users; once there are fewer it has to be asked anew.
    The root of their number keeps both small: how often that is, and how many look better than they are.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.expect()

    def expect(self) -> None:
        users = len(self.group.users)
        self.fewest = max(1, users - math.isqrt(users))


class _Order:
    """One that goes changes the scores of all that share with it. They aren't asked each time: each stands in a heap by
    its best case, and whatever is first there is looked at, until one is first as it is.
    """

    def __init__(
        self,
        census: Census,
        holds: Holds,
        now: float,
        grace_seconds: float,
        shares: Shares,
        working_set_seconds: float,
        within: str | None,
    ) -> None:
        self._census, self._holds, self._now, self._grace = census, holds, now, grace_seconds
        self._shares, self._working_set, self._within = shares, working_set_seconds, within
        kept = keeping(census, holds)
        self._candidates = {
            model.hex: _idle(model.used_at, now, grace_seconds)
            for model in census.models.values()
            if model.hex not in kept.models
        }
        self._of_namespaces: dict[str, list[str]] = {}
        for hex_digits in self._candidates:
            for owner in shares.owners(hex_digits) if shares.many else ():
                self._of_namespaces.setdefault(owner, []).append(hex_digits)
        self._groups: dict[str, list[_Shared]] = {}
        for group in census.groups(kept.items):
            shared = _Shared(group)
            for hex_digits in group.users:
                self._groups.setdefault(hex_digits, []).append(shared)
        self._heap: list[_Entry] = []
        self._standing: dict[str, _Entry] = {}
        """What stands in the heap for each that may still go; other entries are outdated."""

    def run(self) -> Iterator[Victim]:
        downloads: dict[str, Victim] = {}
        if self._within is None:
            for victim in partials(self._census, self._holds, self._now, grace_seconds=self._grace):
                assert victim.partial is not None
                downloads[victim.partial.name] = victim
                self._push((False, -victim.score, victim.partial.name))
        for hex_digits in self._candidates:
            if self._may_go(hex_digits):
                self._push(self._rank(hex_digits, at_best=True))
        while self._standing:
            key = self._take(downloads)
            yield downloads[key] if key in downloads else self._remove(key)

    def _push(self, entry: _Entry) -> None:
        self._standing[entry[2]] = entry
        heapq.heappush(self._heap, entry)

    def _take(self, downloads: Mapping[str, Victim]) -> str:
        """The first in the order now: those are looked at that may be it, best case first."""
        looked, passed = list[_Entry](), list[_Entry]()
        while self._heap and not (looked and looked[0] < self._heap[0]):
            entry = heapq.heappop(self._heap)
            key = entry[2]
            if self._standing.get(key) == entry:
                passed.append(self._standing.pop(key))
                heapq.heappush(looked, entry if key in downloads else self._rank(key))
        first = looked[0][2]
        for entry in passed:
            if entry[2] != first:
                self._push(entry)
        return first

    def _rank(self, hex_digits: str, *, at_best: bool = False) -> _Entry:
        return self._is_later(hex_digits), -self._score(hex_digits, at_best=at_best), hex_digits

    def _is_later(self, hex_digits: str) -> bool:
        return self._shares.many and not self._first(hex_digits)

    def _first(self, hex_digits: str) -> First:
        if not self._shares.many:
            return ""
        if self._candidates[hex_digits] >= self._working_set:
            return "unused for long"
        return "above its share" if self._shares.all_above(hex_digits) else ""

    def _may_go(self, hex_digits: str) -> bool:
        if self._within is not None and self._shares.owners(hex_digits) != {self._within}:
            return False
        return self._candidates[hex_digits] >= self._grace

    def _score(self, hex_digits: str, *, at_best: bool = False) -> float:
        """Now; or the most that it comes to until `_Shared.expect` is called again: meanwhile its parts only grow. What
        has to be written twice makes the score less as it grows, and is left as it is.
        """
        goes = twice = 0.0
        for part in self._groups.get(hex_digits, ()):
            users = len(part.group.users)
            goes += part.group.bytes / (part.fewest if at_best else users)
            twice += (part.group.again - part.group.bytes) / users
        score = self._candidates[hex_digits] * goes / (goes + twice + OVERHEAD_BYTES)
        return score * (1 + _ROUNDING) if at_best else score

    def _remove(self, hex_digits: str) -> Victim:
        """It goes."""
        first, score = self._first(hex_digits), self._score(hex_digits)
        owners = tuple(sorted(self._shares.owners(hex_digits) - {""}))
        charged = self._charged()
        frees = inodes = 0
        outdated = set[str]()
        for part in self._groups.pop(hex_digits, ()):
            users = part.group.users
            users.discard(hex_digits)
            if not users:
                frees += part.group.bytes
                inodes += part.group.inodes
            elif len(users) < part.fewest:
                part.expect()
                outdated |= users
        grew = self._shares.forget(hex_digits)
        for other in outdated | self._advanced(grew):
            if other in self._standing:
                self._push(self._rank(other, at_best=True))
        if self._within is not None:
            frees = charged - self._charged()
        model = self._census.models[hex_digits]
        return Victim(model, None, self._candidates[hex_digits], frees, inodes, score, owners, first)

    def _advanced(self, grew: set[str]) -> set[str]:
        """Those that are of the earlier class now, because what these namespaces have alone now weighs more."""
        return {
            hex_digits
            for namespace in grew
            if self._shares.is_above(namespace)
            for hex_digits in self._of_namespaces.get(namespace, ())
            if hex_digits in self._standing and self._standing[hex_digits][0] and not self._is_later(hex_digits)
        }

    def _charged(self) -> int:
        return self._shares.charged.get(self._within or "", 0)


def _idle(used_at: float, now: float, grace_seconds: float) -> float:
    """Seconds since the last use. A time in the future counts as just old enough: else a clock that was wrong once
    would hold a model for ever.
    """
    idle = now - used_at
    return grace_seconds if idle < -FUTURE_SECONDS else max(0.0, idle)
