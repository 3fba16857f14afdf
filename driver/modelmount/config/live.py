"""Settings that may change while the driver runs: those that are asked for each time they are needed."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from modelmount.config.schema import Cache, Settings
from modelmount.errors import InvalidRequest

log = logging.getLogger(__name__)


class Live:
    """The settings of the start, with `cache` and `limits` as they are in the file now. Thread-safe.

    `reread` reads everything again, the same way as at the start. Until the first `refresh` nothing is read.
    """

    def __init__(self, settings: Settings, reread: Callable[[], Settings]) -> None:
        self._settings, self._reread = settings, reread
        self._complaint = ""

    def __call__(self) -> Settings:
        """As last read."""
        return self._settings

    @property
    def cache(self) -> Cache:
        """The table `cache` as last read."""
        return self._settings.cache

    def refresh(self) -> None:
        """Read again. A configuration with mistakes is logged once, and what counted before goes on to count."""
        try:
            found = self._reread()
        except InvalidRequest as e:
            if e.message != self._complaint:
                self._complaint = e.message
                log.error("the changed configuration doesn't count: %s", e)
            return
        self._complaint = ""
        if (found.cache, found.limits) != (self._settings.cache, self._settings.limits):
            log.info("the bounds of the cache were changed in the configuration")
        self._settings = msgspec.structs.replace(self._settings, cache=found.cache, limits=found.limits)
