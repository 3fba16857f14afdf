"""The connections of awaited jobs in other processes on the same store: prefetches make way for those, too."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from modelmount.content.store import Store

log = logging.getLogger(__name__)

_NODE: Final = ""
"""The name of all registries together."""


class Neighbours:
    """Tells them what is awaited here, and knows what is awaited there; a process that dies is forgotten. Who calls
    sees to it that one thread at a time does.

    A courtesy, and no reason for a pull to fail: where the store's file can't be used, there are no neighbours until
    `close`.
    """

    def __init__(self, store: Store) -> None:
        """Opens nothing yet."""
        self._counts = store.connection_counts()
        self._told: dict[str, int] = {}
        self._alone = False

    def tell(self, awaited: Mapping[str, int]) -> None:
        """The connections that jobs with somebody waiting have here, by registry."""
        counts = {_NODE: sum(awaited.values()), **awaited}
        if self._alone or counts == {_NODE: 0, **self._told}:
            return
        try:
            for name in self._told.keys() | counts.keys():
                self._counts.say(name, counts.get(name, 0))
        except OSError as e:
            self._fails(e)
        self._told = counts

    def have(self, registry: str | None = None) -> int:
        """How many are awaited there, at one registry or altogether."""
        if self._alone:
            return 0
        try:
            return self._counts.elsewhere(_NODE if registry is None else registry)
        except OSError as e:
            self._fails(e)
            return 0

    def close(self) -> None:
        """Nothing is going on here any more; the next call begins again."""
        self._counts.close()
        self._told = {}
        self._alone = False

    def _fails(self, error: OSError) -> None:
        log.warning("pulls of other processes and those of this one don't make way for each other: %s", error.strerror)
        self._alone = True
