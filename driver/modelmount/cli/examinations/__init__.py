"""What `doctor` looks at. An examination looks at one thing, changes nothing, needs no rights and no store, and says
what it found in findings; one that can't look says so. A new one is one function and one place in `EXAMINATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from modelmount.cli.examinations import kubelet, machine, network, storage
from modelmount.cli.examinations.finding import Finding, Level
from modelmount.config import Settings

__all__ = ["EXAMINATIONS", "Finding", "Level", "examine"]

Examination = Callable[[Settings], Iterator[Finding]]

EXAMINATIONS: tuple[Examination, ...] = (
    machine.rights,
    machine.kernel,
    machine.confinement,
    machine.unpacking,
    machine.memory,
    machine.clock,
    storage.store,
    storage.space,
    storage.driver,
    kubelet.directories,
    kubelet.propagation,
    kubelet.sockets,
    network.credentials,
    network.registries,
)


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything that the examinations find, in their order."""
    for examination in EXAMINATIONS:
        try:
            yield from examination(settings)
        except OSError as e:
            place = f"{e.filename}: " if e.filename else ""
            yield Finding(
                Level.WARN, examination.__name__, f"could not be examined: {place}{e.strerror}", "run as root"
            )
