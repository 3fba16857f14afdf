"""The startup taint: new nodes come with it, so that no pod is put there before the driver can give it a model; the
driver takes it off once it serves and the kubelet has registered it. Once a start: whoever puts it back means it.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Final, Protocol, Self

from modelmount.errors import Forbidden, ModelMountError

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 30.0
CLOSE_SECONDS: Final = 2.0


class Nodes(Protocol):
    """Reads and changes nodes: `kube.api.Api`."""

    def is_registered(self, node: str, driver: str) -> bool:
        """Whether the kubelet of the node has told the cluster that it knows the driver."""

    def remove_taint(self, node: str, key: str) -> bool:
        """Take all taints of this key from the node; whether there was one."""


class StartupTaint:
    """Use as a context manager, around the time in which the driver serves; a thread of its own does the rest."""

    def __init__(self, api: Nodes, *, node: str, driver: str, key: str) -> None:
        """Asks nobody yet."""
        self._api, self._node, self._driver, self._key = api, node, driver, key
        self._stopping = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="startup-taint", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._is_done() and not self._stopping.wait(pause):
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _is_done(self) -> bool:
        try:
            if not self._api.is_registered(self._node, self._driver):
                return False
            if self._api.remove_taint(self._node, self._key):
                log.info("the startup taint %s is off node %s: pods may come", self._key, self._node)
        except ModelMountError as e:
            if isinstance(e, Forbidden) and not self._complained:
                log.warning(
                    "the startup taint %s stays, and pods stay away: %s; let the driver's service account get csinodes "
                    "and get and patch nodes (the chart's startupTaint.enabled)",
                    self._key,
                    e,
                )
                self._complained = True
            else:
                log.debug("the startup taint %s stays for now: %s", self._key, e)
            return False
        return True
