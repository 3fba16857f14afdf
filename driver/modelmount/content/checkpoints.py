"""When a download's bytes are made durable: seldom enough not to keep its connections waiting, often enough that a
power cut takes little.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from modelmount.errors import ModelMountError

log = logging.getLogger(__name__)

CHECKPOINT_BYTES = 20 << 20
"""Twice this is the most that a power cut may take, from all writers together: as much is being synced as comes
meanwhile. With what is in flight to a node's worth of connections that makes less than 64 MiB to be served again.
"""
CHECKPOINT_SECONDS = 2.0
KEEPER_BYTES = 128 << 20
"""From this much on a download has a thread for its checkpoints: a connection that waits for the disk four times a
second brings a third less (measured).
"""


class Checkpoints:
    """Those of one ingest. Writers tell what comes and are kept waiting when too much of it isn't durable.

    `lock` is held while one is made, and by whoever must not be disturbed by one; who waits for it holds no other.
    `pending` is how many bytes none covers yet, kept by the ingest under a lock of its own.
    """

    def __init__(self, make: Callable[[], None], is_lost: Callable[[], bool]) -> None:
        """`make` makes one, and raises ModelMountErrors; it is called with `lock` held. Once it raised and all
        `is_lost`, the thread makes no more.
        """
        self.lock = threading.Lock()
        self.pending = 0
        self._make, self._is_lost = make, is_lost
        self._made_at = time.monotonic()
        self._wake = threading.Event()
        self._ended = False
        self._keeper: threading.Thread | None = None

    def begin(self, to_come: int, name: str) -> None:
        """So many bytes are to come. Where that is much, a thread of this name makes the checkpoints from now on."""
        if to_come > KEEPER_BYTES:
            keeper = threading.Thread(target=self._keep, name=name, daemon=True)
            keeper.start()
            self._keeper = keeper

    def make(self) -> None:
        """Make one now. The caller has `lock`. Raises as `make` does."""
        self._make()
        self._made_at = time.monotonic()

    def wait_if_overdue(self) -> None:
        """Before a write: wait for one while more is pending than a power cut may take. Raises as `make` does."""
        if self._is_overdue:
            with self.lock:
                if self._is_overdue:
                    self.make()

    def make_if_due(self) -> None:
        """After a write: make one if it is time, or have it made. Raises as `make` does."""
        if not self._is_due:
            return
        if self._keeper is not None:
            self._wake.set()
        elif self.lock.acquire(blocking=False):
            try:
                if self._is_due:
                    self.make()
            finally:
                self.lock.release()

    def end(self) -> None:
        """The thread makes no more. The caller has `lock`, and calls `join` without it."""
        self._ended = True
        self._wake.set()

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._keeper is not None:
            self._keeper.join()

    def _keep(self) -> None:
        """The thread's life: a checkpoint whenever one is due, until the end or a failed sync, which writers are told
        when they go on. Where a line finds no room on the disk, the writer will see that itself.
        """
        while not self._ended:
            self._wake.wait()
            self._wake.clear()
            try:
                with self.lock:
                    if self._is_due and not self._ended:
                        self.make()
            except ModelMountError as e:
                log.warning("no checkpoint: %s", e)
                if self._is_lost():
                    return

    @property
    def _is_due(self) -> bool:
        return self.pending >= CHECKPOINT_BYTES or time.monotonic() - self._made_at >= CHECKPOINT_SECONDS

    @property
    def _is_overdue(self) -> bool:
        return self.pending > 2 * CHECKPOINT_BYTES
