"""The audit log: which pod of which namespace mounted which digest when, by which proof and whose signatures, and who
was refused. One JSON object a line, in a file of its own, rotated by size.

A call only puts its entry into memory; a thread writes. A disk that doesn't take entries any more delays no pod: what
it doesn't take, or doesn't fit into memory, is dropped, and counted by an entry that says so once one can be written.
There are no secrets in it: an account is the user name shown to the registry.
"""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import queue
import threading
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

KEPT_FILES: Final = 5
"""Rotated ones, `<file>.1` being the youngest."""
WAITING: Final = 10_000
"""Entries that may wait for the disk."""
CLOSE_SECONDS: Final = 5.0


class Audit:
    """One audit log of one process. Thread-safe."""

    def __init__(self, file: str, most_bytes: int) -> None:
        """Rotates before the file has more than `most_bytes`. Empty `file`: nothing is kept, and no thread runs."""
        self._path, self._most = Path(file), most_bytes
        self._entries: queue.Queue[dict[str, object] | None] = queue.Queue(WAITING)
        self._counting = threading.Lock()
        self._dropped = 0
        self._complained = False
        self._may_be_torn = True
        self._thread: threading.Thread | None = None
        if file:
            self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
            self._thread.start()

    def record(self, event: str, **fields: object) -> None:
        """Something happened just now. Never waits, never raises."""
        if self._thread is None:
            return
        entry: dict[str, object] = {"time": _now(), "event": event, **{k: v for k, v in fields.items() if v}}
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self._drop(1)

    @property
    def dropped(self) -> int:
        """Entries that were lost, and that no entry in the file counts yet."""
        return self._dropped

    def close(self) -> None:
        """Write what waits, within a few seconds; twice is harmless."""
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._entries.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            log.error("the audit log %s ends with entries that weren't written", self._path)
            return
        self._thread.join(CLOSE_SECONDS)

    # -- the thread

    def _run(self) -> None:
        while (entry := self._entries.get()) is not None:
            self._write([entry])
        if self._dropped:
            self._write([])

    def _drop(self, more: int) -> None:
        with self._counting:
            self._dropped += more

    def _write(self, entries: list[dict[str, object]]) -> None:
        with self._counting:
            dropped, self._dropped = self._dropped, 0
        counts = [{"time": _now(), "event": "dropped", "entries": dropped}] if dropped else []
        try:
            self._append("".join(json.dumps(line) + "\n" for line in (*entries, *counts)).encode())
        except OSError as e:
            self._drop(dropped + len(entries))
            self._may_be_torn = True
            if not self._complained:
                log.error("the audit log %s can't be written: %s; entries are lost", self._path, e.strerror)
            self._complained = True
        else:
            self._complained = False

    def _append(self, data: bytes) -> None:
        self._rotate(len(data))
        if self._may_be_torn and self._is_torn():
            data = b"\n" + data
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            before = os.fstat(fd).st_size
            if os.write(fd, data) < len(data):
                os.ftruncate(fd, before)  # half a line would spoil the next one too
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        self._may_be_torn = False

    def _is_torn(self) -> bool:
        """Whether the file ends within a line, as it may after a power cut. Nothing is taken away from it."""
        try:
            size = os.stat(self._path, follow_symlinks=False).st_size
            if not size:
                return False
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        try:
            return os.pread(fd, 1, size - 1) != b"\n"
        finally:
            os.close(fd)

    def _rotate(self, more: int) -> None:
        try:
            size = os.stat(self._path, follow_symlinks=False).st_size
        except FileNotFoundError:
            return
        if not size or size + more <= self._most:
            return
        for number in range(KEPT_FILES - 1, 0, -1):
            older = Path(f"{self._path}.{number}")
            if older.exists():
                older.rename(f"{self._path}.{number + 1}")
        self._path.rename(f"{self._path}.1")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
