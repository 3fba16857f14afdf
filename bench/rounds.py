"""Interleaved rounds: every contender runs once in each, in an order that rotates, so that what the machine does
meanwhile hits all of them alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. `cpu` is user and system seconds of the client, `daemon_cpu` of a daemon that works for it, `server_cpu`
    of the registry; `rss` is the client's peak in bytes, 0 where nobody can say.
    """

    wall: float
    cpu: float = 0.0
    daemon_cpu: float = 0.0
    server_cpu: float = 0.0
    rss: int = 0


class Contender(Protocol):
    """Something that is measured. `run` raises when it did not do the work."""

    @property
    def name(self) -> str:
        """As it stands in the table."""

    def run(self) -> Sample:
        """One timed run; what is needed before and cleaned up after is not in the times."""


@dataclass(slots=True)
class Series:
    """The samples of one contender, one a round."""

    name: str
    samples: list[Sample] = field(default_factory=list)

    def median(self, of: Callable[[Sample], float]) -> float:
        """The median of one figure."""
        return statistics.median(of(sample) for sample in self.samples)

    @property
    def wall(self) -> float:
        """The median time."""
        return self.median(lambda sample: sample.wall)

    @property
    def least(self) -> float:
        """The shortest time."""
        return min(sample.wall for sample in self.samples)

    def ratio(self, other: Series) -> float:
        """This one's time over the other's: taken in each round, then the median of them."""
        return statistics.median(a.wall / b.wall for a, b in zip(self.samples, other.samples, strict=True))


def interleave(contenders: Sequence[Contender], rounds: int, say: Callable[[str], None]) -> list[Series]:
    """Run all contenders `rounds` times; in round n the n-th begins."""
    series = [Series(contender.name) for contender in contenders]
    for number in range(rounds):
        for turn in range(len(contenders)):
            index = (turn + number) % len(contenders)
            sample = contenders[index].run()
            series[index].samples.append(sample)
            say(f"round {number + 1} of {rounds}: {contenders[index].name} {sample.wall:.3f} s")
    return series


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: a value that was really measured."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]
