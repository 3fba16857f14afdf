"""Work that comes round again and again while the driver runs."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from modelmount.errors import ModelMountError

log = logging.getLogger(__name__)


class Rounds(ABC):
    """A thread from `with` to its end that calls `round`. What goes wrong is logged and tried again in the next round:
    a thread that ends would let the disk fill up, or find nothing bad any more.
    """

    def __init__(self, name: str, *, first_seconds: float, seconds: float) -> None:
        """Nothing runs yet; `seconds` lie between two rounds, unless a round sets `_pause` to something else."""
        self._name, self._first, self._pause = name, first_seconds, seconds
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def round(self) -> None:
        """Do what is due. Once `_ending` is set it returns soon."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        pause = self._first
        while not self._ending.wait(pause):
            try:
                self.round()
            except (OSError, ModelMountError):
                log.exception("%s could not do its round; it is tried again in %.0f s", self._name, self._pause)
            except Exception:  # the docstring says why the thread goes on
                log.exception("%s failed unexpectedly", self._name)
            pause = self._pause
