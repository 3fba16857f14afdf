"""The gate publishes pass: at most so many wait at once, fewer of one namespace, none once the driver stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from modelmount import errors
from modelmount.service import ports

SHARE: Final = 3
"""One namespace may have so many times the places that are free: 48 of 64 alone, and never the last ones, however many
volumes name a registry that doesn't answer. What doesn't depend on who else there is needs no setting.
"""


class Gate:
    """Counts calls that may wait. Entering never blocks: a refused caller comes back by itself, a waiting one would
    hold a thread.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._condition = threading.Condition()
        self._inside: list[tuple[ports.Call, str]] = []
        self._closed = False

    @contextmanager
    def enter(self, call: ports.Call, whose: str = "") -> Iterator[None]:
        """Hold a place for the block, on behalf of a namespace where it is known. Raises Pending when all places are
        taken, or that namespace's, Unavailable once closed.

        A block that is cancelled because the gate closes ends with Pending: to the caller that is work which goes on,
        and not its own doing.
        """
        with self._condition:
            if self._closed:
                raise errors.Unavailable("the driver on this node is stopping; the call succeeds once it is back")
            if len(self._inside) >= self._places:
                raise errors.Pending(
                    f"{len(self._inside)} volumes are being published on this node, as many as may wait at once; "
                    "this one is tried again soon"
                )
            held = sum(namespace == whose for _, namespace in self._inside)
            if whose and held >= SHARE * (self._places - len(self._inside)):
                raise errors.Pending(
                    f"{held} volumes of the namespace {whose!a} are being published on this node, as many as may wait "
                    "at once beside those of others; this one is tried again soon"
                )
            self._inside.append((call, whose))
        try:
            yield
        except errors.Cancelled as e:
            with self._condition:
                closed = self._closed
            if not closed:
                raise
            raise errors.Pending(
                "the driver on this node is restarting; what was pulled is kept and the pull goes on afterwards"
            ) from e
        finally:
            with self._condition:
                # By identity: two calls with the same deadline may be equal.
                self._inside = [other for other in self._inside if other[0] is not call]
                self._condition.notify_all()

    def close(self) -> None:
        """Refuse whoever comes, cancel who is inside."""
        with self._condition:
            self._closed = True
            for call, _ in self._inside:
                call.cancelled.set()

    def wait_empty(self, patience_seconds: float) -> bool:
        """Whether all are out within that time."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._inside, max(0.0, patience_seconds))
