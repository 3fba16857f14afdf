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
    """One run. `cpu` is user and system seconds of the client, of its children and of a daemon that works for it,
    `server_cpu` of the server; `rss` is the client's peak in bytes (with the daemon's); `served` are the bytes of blobs
    in the server's log, `again` those of them that it had served before. Zero where nobody can say.
    """

    wall: float
    cpu: float = 0.0
    server_cpu: float = 0.0
    rss: int = 0
    served: int = 0
    again: int = 0


class OutError(Exception):
    """A contender can't do this work; the others go on without it."""


class Contender(Protocol):
    """Something that is measured. `run` raises when it did not do the work."""

    @property
    def name(self) -> str:
        """As it stands in the table."""

    @property
    def version(self) -> str:
        """What it is, as far as that decides its figures."""

    def run(self) -> Sample:
        """One timed run; what is needed before and cleaned up after is not in the times. Raises OutError, after which
        it isn't asked again; any other error ends everything.
        """


@dataclass(slots=True)
class Series:
    """The samples of one contender, one a round."""

    name: str
    version: str = ""
    samples: list[Sample] = field(default_factory=list)
    out: str = ""
    """Why it has no more of them."""

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
        """This one's median time over the other's."""
        return self.wall / other.wall


PATIENCE_SECONDS = 60.0
"""More than this in all is not spent on a contender: what is so slow needs no fifth digit. Its rounds are counted."""


def interleave(contenders: Sequence[Contender], rounds: int, say: Callable[[str], None]) -> list[Series]:
    """Run all contenders `rounds` times, or as often as patience allows; in round n the n-th begins."""
    series = [Series(contender.name, contender.version) for contender in contenders]
    for number in range(rounds):
        _round(contenders, series, number, say)
    return series


def _round(contenders: Sequence[Contender], series: Sequence[Series], number: int, say: Callable[[str], None]) -> None:
    for turn in range(len(contenders)):
        index = (turn + number) % len(contenders)
        if series[index].out or sum(sample.wall for sample in series[index].samples) > PATIENCE_SECONDS:
            continue
        try:
            sample = contenders[index].run()
        except OutError as e:
            series[index].out = str(e)
            say(f"round {number + 1}: {contenders[index].name} is out: {e}")
            continue
        series[index].samples.append(sample)
        say(f"round {number + 1}: {contenders[index].name} {sample.wall:.3f} s")


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: a value that was really measured."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]
